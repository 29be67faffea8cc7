"""The latent caches that a graph has among its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dsv3export.errors import EngineError
from dsv3export.runtime.latent_cache import CacheLayout

if TYPE_CHECKING:
    from dsv3export.runtime.onnxruntime_module import ort

# Types of a cache, and of what lies beside it, in the graph -> what it holds. Of an fp8 cache the graph sees the bits:
# ONNX Runtime writes no float8.
_CACHE_DTYPES = {
    ("tensor(float)",): "F32",
    ("tensor(bfloat16)",): "BF16",
    ("tensor(float16)",): "F16",
    ("tensor(int8)", "tensor(bfloat16)"): "F8_E4M3",
}
CACHE = "latent_cache."
SIDE = ".side"


def cache_names(inputs: Mapping[str, ort.NodeArg], first_layer: int) -> list[str]:
    """What the caches among a graph's inputs must be called, if its layers are numbered from there without gaps."""
    caches = [name for name in inputs if name.startswith(CACHE)]
    parts = ("", SIDE) if any(name.endswith(SIDE) for name in caches) else ("",)
    layers = range(first_layer, first_layer + len(caches) // len(parts))
    return [f"{CACHE}{i}{part}" for i in layers for part in parts]


def cache_layout(inputs: Mapping[str, ort.NodeArg], first_layer: int, where: str) -> CacheLayout:
    """The layout of those caches, of which there is one for each layer, all alike. Raises EngineError otherwise."""
    names = cache_names(inputs, first_layer)
    parts = 2 if any(name.endswith(SIDE) for name in names) else 1
    rows = {
        tuple((inputs[name].type, inputs[name].shape[-1]) for name in names[i : i + parts])
        for i in range(0, len(names), parts)
    }
    if len(rows) != 1 or not all(isinstance(width, int) for row in rows for _, width in row):
        raise EngineError(where, expected="one static cache width")
    row = next(iter(rows))
    types = tuple(kind for kind, _ in row)
    if types not in _CACHE_DTYPES:
        expected = "a cache of float, bfloat16, float16, or int8 with bfloat16 beside it"
        raise EngineError(where, expected=expected, got=" and ".join(types))
    side_width = row[1][1] if parts > 1 else 0
    return CacheLayout(len(names) // parts, row[0][1], _CACHE_DTYPES[types], side_width)
