"""The two plugins of a decode step's attention: over parts of the sequence, and the parts put together.

They work in the latent space. What is before and behind them, W^UK into the query and W^UV out of the result, are
products that TensorRT does itself, whatever the precision of kv_b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsv3export.plugins.kernels.plugin import (
    ACTIVATIONS,
    Attributes,
    Build,
    Call,
    Launch,
    Plugin,
    Port,
    T,
    TensorType,
    Tile,
    arguments,
)
from dsv3export.plugins.kernels.sizes import ceil_div, known, power_of_two, product

_KERNELS = "dsv3export.plugins.mla_attention.kernel"
# The matrix units' smallest rows and inner dimension.
_LEAST = 16


def _split_outputs(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    q, parts = inputs[0], int(attributes["parts"])
    batch, queries, heads, latent = q.shape
    lead = (batch, queries, heads, parts)
    return TensorType("F32", (*lead, latent)), TensorType("F32", lead)


def _split(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    q, q_pe, cache, start = inputs
    slots, queries = q.shape[:2]
    heads, latent, rope = known(q.shape[2]), known(q.shape[3]), known(q_pe.shape[3])
    parts = int(attributes["parts"])
    build = Build(
        f"{_KERNELS}:mla_split",
        arguments(
            {"q": q, "q_pe": q_pe, "cache": cache, "start": start},
            ("queries", "capacity"),
            {"partial": outputs[0], "lse": outputs[1]},
        ),
        (
            ("H", heads),
            ("DC", latent),
            ("DR", rope),
            ("DC_PADDED", power_of_two(latent, _LEAST)),
            ("DR_PADDED", power_of_two(rope, _LEAST)),
            ("PARTS", parts),
            ("SCALE", float(attributes["scale"]) * math.log2(math.e)),
            ("ROWS", tile.rows),
            ("TOKENS", tile.columns),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (ceil_div(queries * heads, tile.rows), parts, slots), (queries, cache.shape[-2]))


MLA_SPLIT = Plugin(
    name="MlaSplit",
    doc="Absorbed queries q [B, S, H, Dc], q_pe [B, S, H, Dr] over cache [B, .., T, Dc+Dr], in parts of the sequence: "
    "float32 [B, S, H, parts, Dc], and the base-2 logarithm of each part's sum.",
    inputs=(
        Port("q", ACTIVATIONS),
        Port("q_pe", ACTIVATIONS),
        Port("cache", ACTIVATIONS),
        Port("start", ("I64", "I32")),
    ),
    attributes=(("scale", float), ("parts", int)),
    results=("partial", "lse"),
    outputs=_split_outputs,
    launch=_split,
    tiles=(Tile(16, 16), Tile(16, 16, warps=8)),
)


def _combine_output(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    *lead, _, latent = inputs[0].shape
    return (TensorType(str(attributes["dtype"]), (*lead, latent)),)


def _combine(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], _: Attributes, tile: Tile, target: int
) -> Launch:
    partial, lse = inputs
    *lead, parts, latent = partial.shape
    columns = min(tile.columns, power_of_two(known(latent)))
    build = Build(
        f"{_KERNELS}:mla_combine",
        arguments({"partial": partial, "lse": lse}, (), {"mixed": outputs[0]}),
        (
            ("DC", known(latent)),
            ("PARTS", known(parts)),
            ("PARTS_PADDED", power_of_two(known(parts))),
            ("COLUMNS", columns),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (product(tuple(lead)), ceil_div(latent, columns), 1))


MLA_COMBINE = Plugin(
    name="MlaCombine",
    doc="partial [B, S, H, parts, Dc], lse [B, S, H, parts] -> [B, S, H, Dc].",
    inputs=(Port("partial", ("F32",)), Port("lse", ("F32",))),
    attributes=(("dtype", str),),
    results=("mixed",),
    outputs=_combine_output,
    launch=_combine,
    tiles=(Tile(1, 512, stages=1), Tile(1, 128, warps=2, stages=1)),
)


def attend(call: Call[T], q: T, q_pe: T, cache: T, start: T, scale: float, parts: int, dtype: str) -> T:
    """softmax(scale * ([q | q_pe] cache^T)) cache's latents, causal and ragged: [B, S, H, Dc] of type `dtype`.

    Args:
        q: [B, S, H, Dc], W^UK absorbed. q_pe: [B, S, H, Dr].
        cache: [B, .., T, Dc+Dr], which holds the new tokens already.
        start: [B], tokens that were there before.
        parts: Programs that share a slot's sequence.
    """
    partial, lse = call(MLA_SPLIT, (q, q_pe, cache, start), scale=scale, parts=parts)
    (mixed,) = call(MLA_COMBINE, (partial, lse), dtype=dtype)
    return mixed
