"""The executor at precision fp8 against transformers, and against itself where the checkpoint is not FP8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs import Executor
from dsv3export.graphs.fp8_parts import FP8_NUMBERS, FP8_SCALES, fp8_parts
from dsv3export.recipe import LAYER_COMPONENTS, Recipe
from tests.e2e.goldens import Golden
from tests.e2e.variants import token_ids
from tests.support.compare import LOGITS, assert_close
from tests.support.synthetic import random_checkpoint, tiny_config

# A sum that two programs round to different sides of a float32 may lie between two e4m3 numbers, 6 % apart. With
# prompt 5 that happens; without rounded activations it is 0.3 away.
FLIPPED, FLIP = 5, 0.1


def fp8_recipe(activations: str, **changes: Any) -> Recipe:
    """fp8 with activations "none" or "1x128"."""
    components = {component: {"activations": activations} for component in LAYER_COMPONENTS}
    return Recipe.from_json({"precision": "fp8", "components": {**components, **changes}})


@pytest.mark.parametrize("activations", ["none", "1x128"])
def test_last_logits(activations: str, fp8_golden: Golden) -> None:
    executor = Executor.from_checkpoint(fp8_golden.checkpoint, recipe=fp8_recipe(activations))
    expected = fp8_golden.arrays("last_logits" if activations == "none" else "actquant_last_logits")["last_logits"]
    for prompt, row in enumerate(expected):
        tolerance = FLIP if (activations, prompt) == ("1x128", FLIPPED) else LOGITS
        assert_close(executor.logits(fp8_golden.ids(prompt))[-1], row, tolerance, f"prompt {prompt}")


def test_drafts(fp8_golden: Golden) -> None:
    """The MTP layer's weights are FP8 too."""
    ids = fp8_golden.ids(3)
    expected = Executor.from_checkpoint(fp8_golden.checkpoint).draft_logits(ids)
    fp8 = Executor.from_checkpoint(fp8_golden.checkpoint, recipe=fp8_recipe("none"))
    assert_close(fp8.draft_logits(ids), expected, LOGITS)


def test_a_bf16_checkpoint_is_quantised_as_the_fp8_checkpoint_was(tiny_bf16: Path, tiny_fp8: Path) -> None:
    """Both are the same model: to the byte, but for scales in their last bit and what these round."""
    stored, quantised = Checkpoint.open(tiny_fp8), Checkpoint.open(tiny_bf16)
    for name in ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "model.layers.2.mlp.experts.down_proj"):
        first, second = fp8_parts(name, stored), fp8_parts(name, quantised)
        np.testing.assert_allclose(second[FP8_SCALES], first[FP8_SCALES], rtol=1e-6)
        same = first[FP8_NUMBERS].view(np.uint8) == second[FP8_NUMBERS].view(np.uint8)
        assert same.shape == first[FP8_NUMBERS].shape
        assert same.mean() > 0.999


def test_stored_numbers_and_scales_are_not_touched(tiny_fp8: Path) -> None:
    checkpoint = Checkpoint.open(tiny_fp8)
    name = "model.layers.1.self_attn.o_proj.weight"
    parts = fp8_parts(name, checkpoint)
    assert parts[FP8_NUMBERS].tobytes() == checkpoint.array(name).tobytes()
    assert parts[FP8_SCALES].tobytes() == checkpoint.array(f"{name}_scale_inv").tobytes()
    bank = fp8_parts("model.layers.1.mlp.experts.up_proj", checkpoint)
    for expert in range(16):
        tensor = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        assert bank[FP8_NUMBERS][expert].tobytes() == checkpoint.array(tensor).tobytes()
        assert bank[FP8_SCALES][expert].tobytes() == checkpoint.array(f"{tensor}_scale_inv").tobytes()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_quantised_model_strays_little(dtype: Any, tmp_path: Path) -> None:
    """Cut blocks everywhere; e4m3 rounds to 3 bits behind the leading one."""
    config = tiny_config(hidden_size=130, intermediate_size=129, moe_intermediate_size=127, num_nextn_predict_layers=1)
    path = random_checkpoint(tmp_path / "checkpoint", config, seed=5, dtype=dtype)
    ids = token_ids(config)
    exact = Executor.from_checkpoint(path).logits(ids)
    fp8 = Executor.from_checkpoint(path, recipe=fp8_recipe("none")).logits(ids)
    ratio = float(np.linalg.norm(fp8 - exact) / np.linalg.norm(exact))
    assert 0.005 < ratio < 0.15
