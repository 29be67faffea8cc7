"""The plugins that write into the latent cache in place; TensorRT knows that as outputs aliased to inputs."""

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
from dsv3export.plugins.kernels.stored import NATIVE_E4M3, absent

LARGEST = {"F16": 65504.0, "BF16": 2.0**128 - 2.0**120, "F32": None}
"""The largest number of a cache's type, which values beyond it become; float32 holds what activations hold."""

_CACHE, _SIDE, _EIGHTHS = Port("cache", ACTIVATIONS), Port("side", ("BF16",)), Port("cache", ("F8_E4M3",))
_ROWS = (Port("kv_c", ACTIVATIONS), Port("k_pe", ACTIVATIONS))
_PROJECTED = (
    Port("kv_c", ACTIVATIONS),
    Port("norm", ACTIVATIONS),
    Port("cos", ("F32",)),
    Port("sin", ("F32",)),
)
_START = Port("start", ("I64", "I32"))
_POINTERS = ("_cache", "_side", "kv_c", "k_pe", "norm", "cos", "sin", "start", "updated", "updated_side")


def _appender(name: str, doc: str, inputs: tuple[Port, ...]) -> Plugin:
    names = [port.name for port in inputs]
    caches = 2 if "side" in names else 1
    results = ("updated", "updated_side")[:caches]

    def updated(types: Sequence[TensorType], _: Attributes) -> tuple[TensorType, ...]:
        return tuple(types[:caches])

    def append(
        types: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
    ) -> Launch:
        given = {
            f"_{port}" if place < caches else port: each
            for place, (port, each) in enumerate(zip(names, types, strict=True))
        }
        written = dict(zip(results, outputs, strict=True))
        latent, rope, groups = _dims(dict(zip(names, types, strict=True)))
        slots, capacity, count = types[0].shape[0], types[0].shape[-2], given["kv_c"].shape[1]
        build = Build(
            "dsv3export.plugins.latent_append.kernel:latent_append",
            arguments(given, ("count", "capacity"), written),
            (
                *absent(_POINTERS, (*given, *written)),
                ("DC", latent),
                ("DR", rope),
                ("GROUPS", groups),
                ("LARGEST", LARGEST["BF16" if caches == 2 else types[0].dtype]),
                ("EPS", float(attributes.get("eps", 0.0))),
                ("GROUPS_PADDED", power_of_two(groups)),
                ("GROUP_PADDED", power_of_two(latent // groups)),
                ("PAIRS_PADDED", power_of_two(rope // 2)),
            ),
            tile.warps,
            tile.stages,
        )
        return Launch(build, (count, slots, 1), (count, capacity))

    return Plugin(
        name=name,
        doc=doc,
        inputs=inputs,
        attributes=(("eps", float),) if "norm" in names else (),
        results=results,
        outputs=updated,
        launch=append,
        tiles=(Tile(1, warps=1, stages=1), Tile(1, stages=1)),
        aliases=tuple((place, place) for place in range(caches)),
        least=NATIVE_E4M3 if caches == 2 else 80,
    )


def _dims(types: dict[str, TensorType]) -> tuple[int, int, int]:
    """Dc, Dr and the groups of scales, which an FP8 cache has."""
    if "side" in types:
        latent = known(types["cache"].shape[-1])
        rope = known(types["kv_c"].shape[-1]) - latent if "norm" in types else known(types["k_pe"].shape[-1])
        return latent, rope, known(types["side"].shape[-1]) - rope
    latent = known((types["norm"] if "norm" in types else types["kv_c"]).shape[-1])
    return latent, known(types["cache"].shape[-1]) - latent, 1


_FP8 = "cache e4m3 [B, .., T, Dc] and side [B, .., T, Dr+G], as `dsv3::latent_append_fp8` writes them"
_FROM = (
    "of kv_c [B, S, Dc+Dr] as projected: the latent normalised with weights norm [Dc] and eps, the rest rotated by "
    "cos, sin [B, S, Dr/2]."
)

LATENT_APPEND = _appender(
    "LatentAppend",
    "cache [B, .., T, Dc+Dr] with row start[b] + s of slot b set to (kv_c [B, S, Dc], k_pe [B, S, Dr])[b, s].",
    (_CACHE, *_ROWS, _START),
)
LATENT_APPEND_FP8 = _appender(
    "LatentAppendFp8", f"{_FP8}, of kv_c [B, S, Dc] and k_pe [B, S, Dr].", (_EIGHTHS, _SIDE, *_ROWS, _START)
)
LATENT_APPEND_NORMED = _appender("LatentAppendNormed", f"LatentAppend {_FROM}", (_CACHE, *_PROJECTED, _START))
LATENT_APPEND_NORMED_FP8 = _appender(
    "LatentAppendNormedFp8", f"{_FP8}, {_FROM}", (_EIGHTHS, _SIDE, *_PROJECTED, _START)
)

PLUGINS = (LATENT_APPEND, LATENT_APPEND_FP8, LATENT_APPEND_NORMED, LATENT_APPEND_NORMED_FP8)
