"""What is computed in which type and for which sizes; what a flavour cannot do is refused here, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import gcd, prod

from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import Compute
from dsv3export.engine.program import Limits
from dsv3export.errors import BackendError, RequestError
from dsv3export.graphs.backend import TensorRTOptions
from dsv3export.graphs.lower.tensorrt.flavour import Flavour
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.trace import Part
from dsv3export.graphs.values import is_weight
from dsv3export.recipe import CacheFormat, Recipe
from dsv3export.runtime.device import ALIGNMENT
from dsv3export.runtime.latent_cache import CacheLayout

MAX_SLOTS, MAX_LENGTH, PREFILL_CHUNK, MAX_DRAFT = 8, 4096, 256, 1
# TensorRT counts elements in 32 bits: slots * chunk * width stays far below.
_MOST = 1 << 20
_MOST_ELEMENTS = 2**31 - 1
# More than 2 * MAX_DRAFTS + 1, and a multiple of the blocks that attention reads a cache in.
_DRAFT_ROWS = 64


def check_schemes(flavour: Flavour, recipe: Recipe) -> None:
    """Raises BackendError for the first component that the flavour cannot compute as the recipe wants it."""
    for component, scheme in recipe.schemes():
        where = f"{recipe.source}: {component} as {scheme.format}"
        if scheme.activations == "1x128" and not flavour.rounds_activations:
            raise BackendError(
                f"{where} with activations 1x128 on {flavour.name}", expected="activations none",
                fix="Choose that, or --backend tensorrt, which has a plugin for it.",
            )  # fmt: skip


def check_baked_schemes(flavour: Flavour, recipe: Recipe) -> None:
    """Raises BackendError for the first component whose weights cannot be constants of an engine."""
    for component, scheme in recipe.weight_schemes():
        if scheme.format not in ("fp32", "bf16", "f16"):
            raise BackendError(
                f"{recipe.source}: {component} as {scheme.format} with --bake-weights on {flavour.name}",
                expected="fp32, bf16 or f16: constants of 8 and 4 bits may only be dequantised, not gathered by expert",
                fix="Leave --bake-weights out: weights are then inputs, of any format.",
            )  # fmt: skip


def check_constants(graphs: Mapping[Part, GraphWithWeights]) -> None:
    """Raises BackendError for the first weight with more elements than a constant may have."""
    for graph in graphs.values():
        for value in graph.model.graph.inputs:
            count = prod(int(size) for size in dims_of(value)) if is_weight(value) else 0
            if count > _MOST_ELEMENTS:
                raise BackendError(
                    f"{value.name} with --bake-weights", expected=f"at most {_MOST_ELEMENTS} elements in a constant",
                    got=str(count), fix="Leave --bake-weights out: weights are then inputs, of any size.",
                )  # fmt: skip


def compute_for(recipe: Recipe, asked: Compute | None) -> Compute:
    """What activations are computed in: what was asked for, else bfloat16.

    But float32 and float16 where all weights are that.
    """
    if asked is not None:
        return asked
    formats = {scheme.format for _, scheme in recipe.weight_schemes()}
    return "fp32" if formats == {"fp32"} else "f16" if formats == {"f16"} else "bf16"


def cache_for(flavour: Flavour, recipe: Recipe, compute: Compute, given: bool) -> CacheFormat:
    """What the latent cache is kept in: as the recipe says; float32, which is its default, as what is computed in."""
    if recipe.cache == "fp8":
        raise BackendError(
            f"{recipe.source}: cache fp8 on {flavour.name}", expected="fp32, bf16 or f16",
            fix="TensorRT updates no FP8 cache in place: choose another --cache-dtype.",
        )  # fmt: skip
    return recipe.cache if given or recipe.cache != "fp32" else compute


def limits_for(options: TensorRTOptions, config: ModelConfig) -> Limits:
    """What the profiles reach to. Raises RequestError for a limit that makes no sense, or not for this model."""
    longest = config.max_position_embeddings
    capacity = _within("max_length", options.max_length, min(MAX_LENGTH, longest), 1, longest)
    chunk = _within("prefill_chunk", options.prefill_chunk, min(PREFILL_CHUNK, capacity), 1, capacity)
    draft = _within("max_draft", options.max_draft, min(MAX_DRAFT, capacity - 1), 0, capacity - 1)
    slots = _within("max_slots", options.max_slots, MAX_SLOTS, 1, _MOST // chunk)
    return Limits(slots, draft, chunk, capacity)


def aligned_capacity(capacity: int, config: ModelConfig, cache: CacheFormat) -> int:
    """Rows of a slot's cache, rounded up so that the next slot begins where a tensor may begin.

    A step takes a range of slots; its cache is the memory from the first of them on.
    """
    row = CacheLayout.of(cache, config, layers=1).bytes_per_token
    step = ALIGNMENT // gcd(ALIGNMENT, row)
    return -(-capacity // step) * step


def draft_limits(limits: Limits, config: ModelConfig, cache: CacheFormat) -> Limits:
    """Those of the MTP layer's engines: drafts are written behind the tokens of a sequence, and forgotten."""
    return replace(limits, capacity=aligned_capacity(limits.capacity + _DRAFT_ROWS, config, cache))


def _within(name: str, asked: int | None, default: int, least: int, most: int) -> int:
    value = default if asked is None else asked
    if not least <= value <= most:
        raise RequestError(name, expected=f"{least} to {most}", got=str(value))
    return value
