"""How a benchmark with bounds ends: its file is written, and what is beyond a bound makes the exit code 1."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def beyond(bounds: Mapping[str, tuple[float, float]]) -> list[str]:
    """A line for each figure that is more than it may be.

    Args:
        bounds: What it is -> (what was measured, the most that it may be).
    """
    return [f"{what}: {got:,.0f}, at most {most:,.0f}" for what, (got, most) in bounds.items() if got > most]


def conclude(result: Mapping[str, Any], file: Path | None, broken: Sequence[str]) -> int:
    """Writes the file that was asked for and says what is broken; returns the exit code."""
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0
