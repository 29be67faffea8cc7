"""Build an engine from the shipped checkpoint, load it, and let it write.

Run it from the repository: .venv/bin/python examples/01_build_and_generate.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from dsv3export import Engine
from dsv3export.graphs.build import build_engine

CHECKPOINT = Path(__file__).parent / "tiny-dsv3"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = build_engine(CHECKPOINT, Path(folder) / "engine")
        sys.stdout.write(f"built {report.engine_bytes / 1e6:.1f} MB\n")
        engine = Engine.load(Path(folder) / "engine")
        for piece in engine.stream("And it came to pass in", max_new_tokens=24):
            sys.stdout.write(piece.text)
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
