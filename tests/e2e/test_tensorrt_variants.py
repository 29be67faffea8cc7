"""TensorRT-RTX engines of other models of the family, replayed in float32, against the executor at their recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3export.graphs import Executor
from tests.graphs.tensorrt.test_variants import SMALL, VARIANTS
from tests.support.compare import LOGITS, assert_close
from tests.support.replayed_engine import ReplayedEngine, build_recorded
from tests.support.synthetic import random_checkpoint, tiny_config

CASES = list(zip(VARIANTS, ["bf16", "fp8", "fp8", "bf16"], strict=True))


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_variants_compute_what_the_executor_does(name: str, precision: str, tmp_path: Path) -> None:
    """Through the networks for decoding, by one and two tokens, and through those for prefill, in ragged chunks."""
    config = tiny_config(**VARIANTS[name])
    checkpoint = random_checkpoint(tmp_path / "checkpoint", config, seed=1)
    recorded = build_recorded(checkpoint, tmp_path / "engine", precision=precision, compute="fp32", tensorrt=SMALL)
    replayed = ReplayedEngine(recorded)
    executor = Executor.from_checkpoint(checkpoint, recipe=replayed.files.manifest.recipe)
    ids = np.random.default_rng(0).integers(config["vocab_size"], size=13).tolist()
    expected = executor.logits(ids)
    for chunk in (1, 2, 5, 8):
        assert_close(replayed.logits(ids, chunk), expected, LOGITS * max(1.0, np.abs(expected).max()), f"chunk {chunk}")
