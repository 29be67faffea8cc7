"""What TensorRT computes in which type, for which sizes; and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import Compute
from dsv3export.engine.program import Limits
from dsv3export.errors import UserError
from dsv3export.graphs.backend import TensorRTOptions
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.lower.tensorrt.choices import aligned_capacity, cache_for, compute_for, limits_for
from dsv3export.graphs.lower.tensorrt.flavour import RTX
from dsv3export.recipe import CacheFormat, Recipe
from tests.support.synthetic import tiny_config

pytest.importorskip("tensorrt_rtx_bindings")


@pytest.mark.parametrize(
    ("precision", "asked", "compute"),
    [
        ("fp32", None, "fp32"),
        ("bf16", None, "bf16"),
        ("fp8", None, "bf16"),
        ("int4", None, "bf16"),
        ("int4", "f16", "f16"),
        ("fp8", "fp32", "fp32"),
    ],
)
def test_what_is_computed_in(precision: str, asked: Compute | None, compute: Compute) -> None:
    assert compute_for(Recipe.for_precision(precision), asked) == compute


def test_float16_weights_are_computed_in_float16() -> None:
    multiplied = ("attention", "dense_mlp", "shared_experts", "routed_experts", "head")
    recipe = {"precision": "fp32", "components": {name: {"format": "f16"} for name in multiplied}}
    assert compute_for(Recipe.from_json(recipe), None) == "f16"


def test_the_cache_is_as_asked_for_or_as_what_is_computed_in() -> None:
    recipe = Recipe.for_precision("fp8")
    assert cache_for(RTX, recipe, "bf16", given=False) == "bf16"
    assert cache_for(RTX, recipe, "bf16", given=True) == "fp32"
    assert cache_for(RTX, recipe.with_cache("f16"), "bf16", given=False) == "f16"


def test_limits_stay_within_the_model() -> None:
    config = ModelConfig.from_dict(tiny_config(max_position_embeddings=100), source="config")
    assert limits_for(TensorRTOptions(), config) == Limits(slots=8, draft=1, chunk=100, capacity=100)
    assert limits_for(TensorRTOptions(2, 64, 16, 0), config) == Limits(slots=2, draft=0, chunk=16, capacity=64)


@given(st.integers(1, 5000), st.integers(1, 600), st.sampled_from(["fp32", "bf16", "f16"]))
def test_each_slot_begins_where_a_tensor_may_begin(capacity: int, latent: int, cache: CacheFormat) -> None:
    config = ModelConfig.from_dict(tiny_config(kv_lora_rank=latent), source="config")
    rows = aligned_capacity(capacity, config, cache)
    row_bytes = (latent + config.qk_rope_head_dim) * (4 if cache == "fp32" else 2)
    assert capacity <= rows < capacity + 256 and rows * row_bytes % 256 == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_dtype": "fp8"}, r"cache fp8 on tensorrt-rtx: expected fp32, bf16 or f16"),
        ({"provider": "cuda"}, r"provider: expected backend onnxruntime, got tensorrt-rtx"),
        (
            {"tensorrt": TensorRTOptions(devices=("sm90",))},
            r"device sm90 of backend tensorrt-rtx: expected one of sm80",
        ),
        ({"tensorrt": TensorRTOptions(max_slots=0)}, r"max_slots: expected 1 to \d+, got 0"),
        ({"tensorrt": TensorRTOptions(max_length=5000)}, r"max_length: expected 1 to \d+, got 5000"),
        ({"tensorrt": TensorRTOptions(max_length=8, prefill_chunk=9)}, r"prefill_chunk: expected 1 to 8, got 9"),
        ({"tensorrt": TensorRTOptions(max_length=8, max_draft=8)}, r"max_draft: expected 0 to 7, got 8"),
        ({"backend": "onnxruntime", "tensorrt": TensorRTOptions(max_slots=3)}, r"max_slots: .*got onnxruntime"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str, tiny_fp8: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build_engine(tiny_fp8, tmp_path / "engine", **{"backend": "tensorrt-rtx", "precision": "bf16", **options})
    assert list(tmp_path.iterdir()) == []


def test_rounded_activations_need_a_plugin(tiny_fp8: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('precision = "fp8"\n[components.routed_experts]\nactivations = "1x128"\n')
    with pytest.raises(UserError, match=r"routed_experts as fp8 with activations 1x128 on tensorrt-rtx"):
        build_engine(tiny_fp8, tmp_path / "engine", backend="tensorrt-rtx", recipe=recipe)
    assert list(tmp_path.iterdir()) == [recipe]
