"""The plugin that writes into the latent cache in place; TensorRT knows it as one output aliased to one input."""

from __future__ import annotations

from collections.abc import Sequence

from dsv3export.plugins.kernels.plugin import (
    ACTIVATIONS,
    Attributes,
    Build,
    Launch,
    Plugin,
    Port,
    TensorType,
    Tile,
    arguments,
)
from dsv3export.plugins.kernels.sizes import known, power_of_two

LARGEST = {"F16": 65504.0, "BF16": 2.0**128 - 2.0**120, "F32": None}
"""The largest number of a cache's type, which values beyond it become; float32 holds what activations hold."""


def _updated(inputs: Sequence[TensorType], _: Attributes) -> tuple[TensorType, ...]:
    return (inputs[0],)


def _append(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], _: Attributes, tile: Tile, target: int
) -> Launch:
    cache, kv_c, k_pe, start = inputs
    latent, rope = known(kv_c.shape[-1]), known(k_pe.shape[-1])
    slots, capacity, count = cache.shape[0], cache.shape[-2], kv_c.shape[1]
    build = Build(
        "dsv3export.plugins.latent_append.kernel:latent_append",
        arguments(
            {"_cache": cache, "kv_c": kv_c, "k_pe": k_pe, "start": start},
            ("count", "capacity"),
            {"updated": outputs[0]},
        ),
        (("DC", latent), ("DR", rope), ("LARGEST", LARGEST[cache.dtype]), ("BLOCK", power_of_two(latent + rope))),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (count, slots, 1), (count, capacity))


LATENT_APPEND = Plugin(
    name="LatentAppend",
    doc="cache [B, .., T, Dc+Dr] with row start[b] + s of slot b set to (kv_c [B, S, Dc], k_pe [B, S, Dr])[b, s].",
    inputs=(
        Port("cache", ACTIVATIONS),
        Port("kv_c", ACTIVATIONS),
        Port("k_pe", ACTIVATIONS),
        Port("start", ("I64", "I32")),
    ),
    results=("updated",),
    outputs=_updated,
    launch=_append,
    tiles=(Tile(1, stages=1),),
    aliases=((0, 0),),
)
