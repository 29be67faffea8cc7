"""What is built for which of ONNX Runtime's providers: a row for each, and one-line refusals of what cannot run there.

docs/providers.md says which kernels these are, and where that is known from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import Compute, Provider
from dsv3export.errors import BackendError, RequestError
from dsv3export.graphs.lower.onnxruntime import cuda
from dsv3export.graphs.lower.onnxruntime.ops import RowOf, row
from dsv3export.recipe import CACHE_FORMATS, CacheFormat, Recipe, Scheme
from dsv3export.recipe.scheme import Format


@dataclass(frozen=True)
class Lowering:
    """How engines are built for a provider.

    Attributes:
        computes: What integer and fp8 weights can be multiplied in, the default first.
        rows: How each op is run, for one of these.
        rounds_activations: Whether its integer products round activations to int8.
        expert_multiples: By format, what the experts' widths (the model's and their own) must be multiples of. A
            format that is not here has no kernel.
        expert_groups: The group sizes that integer experts may have.
        caches: What the latent cache may be kept in.
    """

    computes: tuple[Compute, ...]
    rows: Callable[[Compute], RowOf]
    rounds_activations: bool
    expert_multiples: Mapping[Format, int]
    expert_groups: tuple[int, ...]
    caches: tuple[CacheFormat, ...]


LOWERINGS: Mapping[Provider, Lowering] = {
    "cpu": Lowering(("fp32",), lambda _: row, True, dict.fromkeys(get_args(Format), 1), (128, 64, 32), CACHE_FORMATS),
    # MoE loads 16 bytes at once; QMoE interleaves integers in tiles of 64. Released builds have no fp8 experts.
    "cuda": Lowering(
        ("bf16", "f16"),
        cuda.rows,
        False,
        {"fp32": 4, "bf16": 8, "f16": 8, "int8": 64, "int4": 64},
        (128, 64),
        ("fp32", "bf16", "f16"),
    ),
}
# What the newest releases with the other providers lack: each layer's cache and experts would run on the CPU.
REFUSALS: Mapping[Provider, str] = {
    "migraphx": "onnxruntime-migraphx 1.27.1, which has none of them",
    "cann": "onnxruntime-cann 1.24.4, which has none of them",
}


def lowering_for(provider: Provider, compute: Compute | None, recipe: Recipe) -> tuple[Lowering, Compute]:
    """The provider's row, and what it computes integer and fp8 weights in, fp32 where there are none.

    Raises:
        BackendError: Nothing is built for the provider, or not with `compute`.
        RequestError: `compute` is given in vain.
    """
    if provider in REFUSALS:
        raise BackendError(
            f"provider {provider}", expected="kernels for TensorScatter, RMSNormalization, MoE and QMoE",
            got=REFUSALS[provider], fix="Use --provider cuda or cpu.",
        )  # fmt: skip
    lowering = LOWERINGS[provider]
    if recipe.cache not in lowering.caches:
        raise BackendError(
            f"cache {recipe.cache} on provider {provider}", expected=" or ".join(lowering.caches),
            fix="Choose another --cache-dtype.",
        )  # fmt: skip
    if not any(scheme.format in ("int8", "int4", "fp8") for _, scheme in recipe.weight_schemes()):
        if compute is not None:
            raise RequestError(
                "compute", expected="a recipe with an integer or fp8 component", got=recipe.precision,
                fix="Leave --compute out: other weights are multiplied in their own type.",
            )  # fmt: skip
        return lowering, "fp32"
    if compute is not None and compute not in lowering.computes:
        raise BackendError(
            f"compute {compute} on provider {provider}", expected=" or ".join(lowering.computes),
            fix="Leave --compute out, or use --provider cuda.",
        )  # fmt: skip
    return lowering, compute or lowering.computes[0]


def check_experts(lowering: Lowering, recipe: Recipe, config: ModelConfig) -> None:
    """Raises BackendError where the provider's kernels refuse the experts' format, groups or widths."""
    if not config.n_routed_experts:
        return
    for component, scheme in recipe.schemes():
        if component == "routed_experts":
            _check_scheme(lowering, scheme, recipe.source)
            _check_widths(lowering.expert_multiples[scheme.format], scheme.format, config)


def _check_scheme(lowering: Lowering, scheme: Scheme, source: str) -> None:
    if scheme.format not in lowering.expert_multiples:
        raise BackendError(
            f"{source}: routed_experts as {scheme.format} on this provider",
            expected=f"one of {', '.join(lowering.expert_multiples)}",
            fix="Give routed_experts another format in a recipe: int8 has as many bits.",
        )
    if scheme.group_size is not None and scheme.group_size not in lowering.expert_groups:
        raise BackendError(
            f"{source}: routed_experts group_size on this provider",
            expected=" or ".join(map(str, lowering.expert_groups)),
            got=str(scheme.group_size),
        )


def _check_widths(multiple: int, format: Format, config: ModelConfig) -> None:
    for key, width in (("hidden_size", config.hidden_size), ("moe_intermediate_size", config.moe_intermediate_size)):
        if width % multiple:
            raise BackendError(
                f"config.json: {key} with {format} experts on this provider",
                expected=f"a multiple of {multiple}",
                got=str(width),
                fix="Choose another precision for routed_experts, or --provider cpu.",
            )


def as_computed(lowering: Lowering, recipe: Recipe) -> Recipe:
    """The recipe with activations as the provider's kernels leave them: the engine should say what it does."""
    return recipe if lowering.rounds_activations else recipe.unrounded()


def providers_with_kernels(provider: Provider, recipe: Recipe, compute: Compute) -> tuple[Provider, ...]:
    """The provider that an engine is built for, and the CPU where that has kernels for all of it.

    It has none for bfloat16, nor for fp8 products as other providers want them.
    """
    if provider == "cpu":
        return ("cpu",)
    formats = {scheme.format for _, scheme in recipe.weight_schemes()}
    if formats & {"bf16", "fp8"} or (compute == "bf16" and formats & {"int8", "int4"}):
        return (provider,)
    return (provider, "cpu")
