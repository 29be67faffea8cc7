"""The plugin of a prefill's attention, over keys and values that a product has projected up from the latents."""

from __future__ import annotations

import math
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
    roomy,
)
from dsv3export.plugins.kernels.sizes import ceil_div, known, power_of_two

# The matrix units' smallest rows and inner dimension.
_LEAST = 16


def _outputs(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    q = inputs[0]
    return (TensorType(q.dtype, (*q.shape[:-1], int(attributes["value"]))),)


def _prefill(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    q, q_pe, kv, cache, start = inputs
    slots, queries = q.shape[:2]
    heads, nope, rope = known(q.shape[2]), known(q.shape[3]), known(q_pe.shape[3])
    value = int(attributes["value"])
    build = Build(
        "dsv3export.plugins.mla_attention.prefill_kernel:mla_prefill",
        arguments(
            {"q": q, "q_pe": q_pe, "kv": kv, "cache": cache, "start": start},
            ("queries", "length", "capacity"),
            {"out": outputs[0]},
        ),
        (
            ("H", heads),
            ("DN", nope),
            ("DV", value),
            ("DC", known(cache.shape[-1]) - rope),
            ("DR", rope),
            ("DN_PADDED", power_of_two(nope, _LEAST)),
            ("DV_PADDED", power_of_two(value, _LEAST)),
            ("DR_PADDED", power_of_two(rope, _LEAST)),
            ("SCALE", float(attributes["scale"]) * math.log2(math.e)),
            ("ROWS", tile.rows),
            ("TOKENS", tile.columns),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (ceil_div(queries, tile.rows), heads, slots), (queries, kv.shape[1], cache.shape[-2]))


def _preferred(inputs: Sequence[TensorType], _: Attributes, target: int) -> int:
    return 2 if roomy(target) and inputs[0].dtype != "F32" else 0


MLA_PREFILL = Plugin(
    name="MlaPrefill",
    doc="q_nope [B, S, H, Dn], q_pe [B, S, H, Dr] over kv [B, L, H, Dn+Dv], the first L = max(start) + S latents "
    "projected up, and cache [B, .., T, Dc+Dr], for k_pe: causal, over what came before, [B, S, H, Dv]. `value` is Dv.",
    inputs=(
        Port("q", ACTIVATIONS),
        Port("q_pe", ACTIVATIONS),
        Port("kv", ACTIVATIONS),
        Port("cache", ACTIVATIONS),
        Port("start", ("I64", "I32")),
    ),
    attributes=(("scale", float), ("value", int)),
    results=("out",),
    outputs=_outputs,
    launch=_prefill,
    tiles=(Tile(64, 32, stages=1), Tile(64, 64, stages=2), Tile(128, 64, warps=8), Tile(128, 128, warps=8)),
    prefer=_preferred,
)
