"""The packages of other programs that a benchmark compares with; they are installed apart."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def require_peers(*modules: str) -> None:
    """Ends this process with one line and exit code 2 if a module is missing: before hours of work, not after."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; install what benchmarks need: make bench-setup", file=sys.stderr)
        raise SystemExit(2)
