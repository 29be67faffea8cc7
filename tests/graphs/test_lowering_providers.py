"""What is built for which provider, and what is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.manifest import PROVIDERS, Compute, Provider
from dsv3export.errors import UserError
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.lower.onnxruntime.ops import row
from dsv3export.graphs.lower.onnxruntime.providers import (
    LOWERINGS,
    REFUSALS,
    as_computed,
    lowering_for,
    providers_with_kernels,
)
from dsv3export.recipe import Recipe
from tests.support.synthetic import random_checkpoint, tiny_config


def recipe(precision: str, **components: dict[str, Any]) -> Recipe:
    return Recipe.from_json({"precision": precision, "components": components})


def test_every_provider_is_built_for_or_refused() -> None:
    assert LOWERINGS.keys() | REFUSALS.keys() == set(PROVIDERS)
    assert not LOWERINGS.keys() & REFUSALS.keys()


def test_the_cpu_lowering_is_the_default_one() -> None:
    lowering, compute = lowering_for("cpu", None, recipe("int8"))
    assert lowering.rows(compute) is row and compute == "fp32"
    assert as_computed(lowering, recipe("int8")) == recipe("int8")


@pytest.mark.parametrize(
    ("precision", "asked", "computed", "providers"),
    [
        ("fp32", None, "fp32", ("cuda", "cpu")),
        ("int8", None, "bf16", ("cuda",)),
        ("int4", "bf16", "bf16", ("cuda",)),
        ("int4", "f16", "f16", ("cuda", "cpu")),
        ("fp8", "f16", "f16", ("cuda",)),
    ],
)
def test_what_is_computed_in_which_type(
    precision: str, asked: Compute | None, computed: Compute, providers: tuple[Provider, ...]
) -> None:
    chosen = recipe(precision, head={"format": "fp32"})
    lowering, compute = lowering_for("cuda", asked, chosen)
    assert compute == computed
    assert providers_with_kernels("cuda", chosen, compute) == providers
    assert "MlaAttention" in lowering.rows(compute)("MlaAttention", False).function({**DIMS}, {"scale": 1.0})


DIMS = {"H": 2, "Dn": 4, "Dr": 2, "Dc": 8, "Dv": 4}


def test_bf16_weights_do_not_run_on_the_cpu_either() -> None:
    assert providers_with_kernels("cuda", recipe("fp32", head={"format": "bf16"}), "fp32") == ("cuda",)
    assert providers_with_kernels("cuda", recipe("fp32", head={"format": "f16"}), "fp32") == ("cuda", "cpu")
    assert providers_with_kernels("cuda", recipe("fp32", embedding={"format": "bf16"}), "fp32") == ("cuda", "cpu")


def test_an_engine_says_that_activations_are_not_rounded() -> None:
    """CUDA's integer products take float activations; the executor at the engine's recipe then does too."""
    given = Recipe.from_json({"precision": "int4", "first_layers": {"count": 1, "components": {"attention": {}}}})
    told = as_computed(LOWERINGS["cuda"], given)
    assert given.components["attention"].activations == "int8"
    assert {scheme.activations for scheme in told.components.values()} == {"none"}
    assert told.first_layers and told.first_layers.components["attention"].activations == "none"
    assert told.components["attention"].group_size == given.components["attention"].group_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"provider": "migraphx"},
            r"expected kernels for TensorScatter, .* MoE and QMoE, got onnxruntime-migraphx .* none of them\. Use",
        ),
        ({"provider": "cann", "precision": "int4"}, r"provider cann: .* got onnxruntime-cann 1\.24\.4, which"),
        ({"provider": "cuda", "precision": "fp8"}, r"routed_experts as fp8 on this provider: .* int8 has as many bits"),
        ({"provider": "cuda", "cache_dtype": "fp8"}, "cache fp8 on provider cuda: expected fp32 or bf16 or f16"),
        ({"compute": "bf16"}, "compute: expected a recipe with an integer or fp8 component, got fp32"),
        ({"compute": "bf16", "precision": "int8"}, "compute bf16 on provider cpu: expected fp32"),
        ({"provider": "cuda", "compute": "fp32", "precision": "int8"}, "on provider cuda: expected bf16 or f16"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], message: str, tiny_fp8: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_engine(tiny_fp8, tmp_path / "engine", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_groups_that_qmoe_lacks(tiny_fp8: Path, tmp_path: Path) -> None:
    text = 'precision = "int4"\n[components.routed_experts]\nformat = "int4"\ngroup_size = 32\n'
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UserError, match="routed_experts group_size on this provider: expected 128 or 64, got 32"):
        build_engine(tiny_fp8, tmp_path / "engine", recipe=tmp_path / "recipe.toml", provider="cuda")


@pytest.mark.parametrize(
    ("widths", "precision", "says"),
    [
        (
            {"hidden_size": 64, "moe_intermediate_size": 96},
            "int8",
            "moe_intermediate_size with int8 experts .* a multiple of 64, got 96",
        ),
        ({"hidden_size": 90}, "fp32", "hidden_size with fp32 experts .* a multiple of 4, got 90"),
    ],
)
def test_widths_that_the_kernels_refuse(widths: dict[str, int], precision: str, says: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", tiny_config(**widths), seed=1)
    with pytest.raises(UserError, match=says):
        build_engine(checkpoint, tmp_path / "engine", precision=precision, provider="cuda")
    assert not (tmp_path / "engine").exists()


def test_a_dense_model_has_no_experts_to_refuse(tmp_path: Path) -> None:
    config = tiny_config(n_routed_experts=0, hidden_size=90)
    checkpoint = random_checkpoint(tmp_path / "checkpoint", config, seed=1)
    report = build_engine(checkpoint, tmp_path / "engine", provider="cuda")
    assert report.manifest.backend.providers == ("cuda", "cpu")
