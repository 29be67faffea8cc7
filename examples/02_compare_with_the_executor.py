"""Compare an engine with the executor, the oracle, and look at what one router decided.

Run it from the repository: .venv/bin/python examples/02_compare_with_the_executor.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from dsv3export import Engine
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine

CHECKPOINT = Path(__file__).parent / "tiny-dsv3"
TOKENS = [0, 373, 303, 660, 298, 944, 308]


def main() -> None:
    executor = Executor.from_checkpoint(CHECKPOINT)
    with tempfile.TemporaryDirectory() as folder:
        build_engine(CHECKPOINT, Path(folder) / "engine")
        difference = np.abs(Engine.load(Path(folder) / "engine").logits(TOKENS) - executor.logits(TOKENS)).max()
    sys.stdout.write(f"largest difference of a logit: {difference:.1e}\n")
    seen = executor.intermediates(TOKENS)
    for position, (ids, weights) in enumerate(
        zip(seen["layers.3.mlp.gate.ids"], seen["layers.3.mlp.gate.weights"], strict=True)
    ):
        choice = ", ".join(f"{expert} ({weight:.2f})" for expert, weight in zip(ids, weights, strict=True))
        sys.stdout.write(f"layer 3, position {position}: experts {choice}\n")


if __name__ == "__main__":
    main()
