"""Generate for prompts of different lengths at once: each gives what it gives alone.

Run it from the repository: .venv/bin/python examples/03_ragged_batch.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from dsv3export import Engine
from dsv3export.graphs.build import build_engine

CHECKPOINT = Path(__file__).parent / "tiny-dsv3"
PROMPTS = [
    "In the beginning",
    "And the LORD said unto Moses, Speak unto the children of Israel, saying",
    "Blessed",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build_engine(CHECKPOINT, Path(folder) / "engine")
        engine = Engine.load(Path(folder) / "engine")
        together = engine.generate(PROMPTS, max_new_tokens=16)
        for prompt, result in zip(PROMPTS, together, strict=True):
            alone = engine.generate(prompt, max_new_tokens=16)
            same = "as alone" if alone.token_ids == result.token_ids else "NOT as alone"
            sys.stdout.write(f"{prompt!r} -> {result.text!r} ({same})\n")


if __name__ == "__main__":
    main()
