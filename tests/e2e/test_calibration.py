"""Calibrated int4 through a real engine; what it gains is in tests/benchmarks/test_precision.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.precision import written_text
from dsv3export import Engine
from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.reader import EngineFiles
from dsv3export.evaluate import compare
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.calibration_text import calibration_sequences


@pytest.fixture(scope="module")
def plain(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The float32 engine."""
    out = tmp_path_factory.mktemp("float32") / "engine"
    build_engine(tiny_bf16, out)
    return Engine.load(out, threads=1)


@pytest.fixture(scope="module")
def text(plain: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration text that the model has written itself, from a fixed seed."""
    path = tmp_path_factory.mktemp("text") / "sampled.txt"
    path.write_text(written_text(plain), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def calibrated(tiny_bf16: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int4") / "engine"
    build_engine(tiny_bf16, out, precision="int4", calibration=text)
    return out


def test_the_executor_fits_the_same_weights(
    calibrated: Path, plain: Engine, text: Path, tiny_bf16: Path, goldens: Callable[[str], Path]
) -> None:
    """It stands apart from the engine by the kernels' rounding: by 3 % of what int4 costs."""
    checkpoint = Checkpoint.open(tiny_bf16)
    recipe = EngineFiles.open(calibrated).manifest.recipe
    executor = Executor(checkpoint, recipe=recipe, calibration_ids=calibration_sequences(text, checkpoint))
    ids = json.loads((goldens("bf16").parent / "heldout_token_ids.json").read_text())[:100]
    engine = Engine.load(calibrated, threads=1)
    assert compare(engine, executor, ids).kl_mean < 0.03 * compare(engine, plain, ids).kl_mean
