"""A text through a model at one recipe after another: the same as through each by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.evaluate import compare
from dsv3export.graphs import Executor
from dsv3export.graphs.calibration_text import calibration_sequences
from dsv3export.graphs.text_runs import TextRuns
from dsv3export.recipe import Recipe, Scheme
from dsv3export.sensitivity.units import Unit, with_units

IDS = list(range(40, 110))
FLOAT32 = Recipe.for_precision("fp32")
INT4 = Scheme.of("int4")
RECIPES = (
    with_units(FLOAT32, {Unit("routed_experts", (2,)): INT4}),
    with_units(FLOAT32, {Unit("head"): INT4}),
    with_units(FLOAT32, {Unit("attention", (0,)): INT4}),  # back to the beginning
    Recipe.for_precision("int4"),
)


@pytest.fixture(scope="module")
def checkpoint(tiny_bf16: Path) -> Checkpoint:
    return Checkpoint.open(tiny_bf16)


def test_beside_float32_each_recipe_is_what_its_executor_computes(checkpoint: Checkpoint) -> None:
    runs, right = TextRuns(checkpoint, IDS, 31), Executor(checkpoint)
    for recipe in RECIPES:
        found = runs.compare(recipe)
        expected = compare(Executor(checkpoint, recipe=recipe), right, IDS, 31)
        np.testing.assert_array_equal(found.token_kl, expected.token_kl)
        np.testing.assert_array_equal(found.model.token_nll, expected.model.token_nll)
        np.testing.assert_array_equal(found.against.token_nll, expected.against.token_nll)
        assert found.kl_mean > 0


def test_float32_beside_itself_is_equal(checkpoint: Checkpoint) -> None:
    assert TextRuns(checkpoint, IDS[:5], 4).compare(FLOAT32).kl_max == 0


def test_a_calibration_text_takes_part(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("And it came to pass in those days. " * 60, encoding="utf-8")
    sequences = calibration_sequences(text, checkpoint)[:1]
    recipe = with_units(FLOAT32, {Unit("attention", (1,)): Scheme.of("int4", calibrated=True)})
    found = TextRuns(checkpoint, IDS[:20], 31, sequences).compare(recipe)
    expected = compare(
        Executor(checkpoint, recipe=recipe, calibration_ids=sequences), Executor(checkpoint), IDS[:20], 31
    )
    np.testing.assert_array_equal(found.token_kl, expected.token_kl)
