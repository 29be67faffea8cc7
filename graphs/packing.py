"""How a weight of the graph is laid out for a backend: a table of packings, numpy arrays in, one array out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class PackedWeight:
    """A weight as a backend's graph wants it.

    Args:
        name: Its name in the lowered main graph.
        packing: A key of `PACKINGS`.
        inputs: The weights of the intermediate graph that it is made of, by name.
        dtype: safetensors dtype name.
        shape: Its shape after packing.
    """

    name: str
    packing: str
    inputs: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]


def _interleave(arrays: Sequence[Array]) -> Array:
    """Gate and up [E, I, D] -> [E, 2I, D] with rows gate0, up0, gate1, up1, ... (ONNX Runtime's SwiGLU order)."""
    gate, up = arrays
    experts, width, hidden = gate.shape
    return np.stack([gate, up], axis=2).reshape(experts, 2 * width, hidden)


PACKINGS: dict[str, Callable[[Sequence[Array]], Array]] = {
    "float32": lambda arrays: arrays[0],
    "interleave_gate_up": _interleave,
}
# Values that are already what the graph wants stay in the checkpoint, whatever float type they are stored in.
AS_STORED = "as_stored"
