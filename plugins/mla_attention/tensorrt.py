"""The two plugins of a decode step's attention: over parts of the sequence, and the parts put together.

They work in the latent space. What is before and behind them, W^UK into the query and W^UV out of the result, are
products that TensorRT does itself, whatever the precision of kv_b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dsv3export.errors import InternalError
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
from dsv3export.plugins.kernels.stored import NATIVE_E4M3, absent

_KERNELS = "dsv3export.plugins.mla_attention.kernel"
# The matrix units' smallest rows and inner dimension.
_LEAST = 16
# Tokens along the matrix unit's long side on Hopper, where heads do not fill it.
_LONG_SIDE = 64
_HOPPER = 9


def _split_outputs(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    q, parts = inputs[0], int(attributes["parts"])
    batch, queries, heads, latent = q.shape
    lead = (batch, queries, heads, parts)
    if parts == 1:
        # Nothing is to be put together: what a part gives is the result.
        return TensorType(str(attributes["dtype"]), (*lead[:3], latent)), TensorType("F32", lead)
    return TensorType("F32", (*lead, latent)), TensorType("F32", lead)


def _split(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    q, q_pe, cache, *side, start = inputs
    slots, queries = q.shape[:2]
    heads, latent, rope = known(q.shape[2]), known(q.shape[3]), known(q_pe.shape[3])
    parts = int(attributes["parts"])
    groups = known(side[0].shape[-1]) - rope if side else 0
    given = {"q": q, "q_pe": q_pe, "cache": cache, **({"side": side[0]} if side else {}), "start": start}
    raw = ("cache",) if side and target < NATIVE_E4M3 else ()
    build = Build(
        f"{_KERNELS}:mla_split",
        arguments(given, ("queries", "capacity"), {"partial": outputs[0], "lse": outputs[1]}, raw),
        (
            *absent(("side",), tuple(given)),
            ("H", heads),
            ("DC", latent),
            ("DR", rope),
            ("DC_PADDED", power_of_two(latent, _LEAST)),
            ("DR_PADDED", power_of_two(rope, _LEAST)),
            ("GROUPS", groups),
            ("PARTS", parts),
            ("SCALE", float(attributes["scale"]) * math.log2(math.e)),
            ("ROWS", tile.rows),
            ("TOKENS", tile.columns),
            ("SWAPPED", tile.columns >= _LONG_SIDE > tile.rows),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (ceil_div(queries * heads, tile.rows), parts, slots), (queries, cache.shape[-2]))


def _split_fp8(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    latent, groups = known(inputs[0].shape[3]), known(inputs[3].shape[-1]) - known(inputs[1].shape[3])
    if latent != power_of_two(latent, _LEAST) or groups != power_of_two(groups):
        raise InternalError(f"a latent of {latent} in {groups} groups is not read by a kernel: no powers of two")
    return _split(inputs, outputs, attributes, tile, target)


def _preferred(inputs: Sequence[TensorType], _: Attributes, target: int) -> int:
    """On Hopper, whose shared memory and wgmma suit them, the wide tiles: the last, if the heads fill its rows."""
    if inputs[0].dtype == "F32" or target // 10 != _HOPPER:
        return 0
    queries, heads = (known(size) for size in inputs[0].shape[1:3])
    return 3 if queries * heads >= _LONG_SIDE else 2


def _preferred_fp8(inputs: Sequence[TensorType], _: Attributes, target: int) -> int:
    """On Hopper the last, which converts the cache once for both products."""
    return 0 if inputs[0].dtype == "F32" or target // 10 != _HOPPER else 2


_QUERIES = (Port("q", ACTIVATIONS), Port("q_pe", ACTIVATIONS))
_START = Port("start", ("I64", "I32"))
_PARTS = (
    "in parts of the sequence: float32 [B, S, H, parts, Dc], or [B, S, H, Dc] of type `dtype` if that is one, "
    "and the base-2 logarithm of each part's sum."
)

MLA_SPLIT = Plugin(
    name="MlaSplit",
    doc=f"Absorbed queries q [B, S, H, Dc], q_pe [B, S, H, Dr] over cache [B, .., T, Dc+Dr], {_PARTS}",
    inputs=(*_QUERIES, Port("cache", ACTIVATIONS), _START),
    attributes=(("scale", float), ("parts", int), ("dtype", str)),
    results=("partial", "lse"),
    outputs=_split_outputs,
    launch=_split,
    tiles=(Tile(16, 16), Tile(16, 16, warps=8), Tile(16, 64, warps=8), Tile(64, 64, warps=8)),
    prefer=_preferred,
)

MLA_SPLIT_FP8 = Plugin(
    name="MlaSplitFp8",
    doc=f"As MlaSplit, over cache e4m3 [B, .., T, Dc] and side [B, .., T, Dr+G], k_pe and the scales, {_PARTS}",
    inputs=(*_QUERIES, Port("cache", ("F8_E4M3",)), Port("side", ACTIVATIONS), _START),
    attributes=(("scale", float), ("parts", int), ("dtype", str)),
    results=("partial", "lse"),
    outputs=_split_outputs,
    launch=_split_fp8,
    tiles=(Tile(16, 16), Tile(16, 32, warps=8), Tile(64, 32, warps=8)),
    prefer=_preferred_fp8,
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
    partial, lse = call(MLA_SPLIT, (q, q_pe, cache, start), scale=scale, parts=parts, dtype=dtype)
    return _together(call, partial, lse, parts, dtype)


def attend_fp8(call: Call[T], q: T, q_pe: T, cache: T, side: T, start: T, scale: float, parts: int, dtype: str) -> T:
    """`attend` over the cache that `dsv3::latent_append_fp8` writes.

    Args:
        cache: e4m3 [B, .., T, Dc]. side: [B, .., T, Dr+G], the rotary part and the scales; Dc and G are powers of two.
    """
    partial, lse = call(MLA_SPLIT_FP8, (q, q_pe, cache, side, start), scale=scale, parts=parts, dtype=dtype)
    return _together(call, partial, lse, parts, dtype)


def _together(call: Call[T], partial: T, lse: T, parts: int, dtype: str) -> T:
    return partial if parts == 1 else call(MLA_COMBINE, (partial, lse), dtype=dtype)[0]
