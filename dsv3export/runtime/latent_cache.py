"""The KV-latent cache: per token and layer one row of kv_lora_rank + qk_rope_head_dim numbers, nothing else.

Formats, with Dc = kv_lora_rank and Dr = qk_rope_head_dim:

    fp32, bf16, f16   Dc + Dr numbers of that type
    fp8               Dc numbers as float8 e4m3 in groups of 128; beside them, in bfloat16, the Dr numbers of the rotary
                      part and a scale for each group
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3export.config import ModelConfig
from dsv3export.dtypes import NUMPY, itemsize
from dsv3export.errors import InternalError, ResourceError
from dsv3export.recipe import CacheFormat

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_GROUP = 128
_SIDE_DTYPE = "BF16"
_DTYPES: dict[CacheFormat, str] = {"fp32": "F32", "bf16": "BF16", "f16": "F16", "fp8": "F8_E4M3"}


def scale_groups(latent: int) -> int:
    """How many scales a latent of that width has in an fp8 cache: one for 128 numbers, or one for an odd width."""
    return latent // _GROUP if latent % _GROUP == 0 else 1


@dataclass(frozen=True)
class CacheLayout:
    """What a cache holds for a token.

    Attributes:
        layers: Each has its own row.
        width: The row's numbers of `dtype`, a safetensors dtype name.
        side_width: bfloat16 numbers beside them, of an fp8 cache.
    """

    layers: int
    width: int
    dtype: str = "F32"
    side_width: int = 0

    @classmethod
    def of(cls, format: CacheFormat, config: ModelConfig, layers: int | None = None) -> CacheLayout:
        """The layout of a model's cache in that format; of all layers of its trunk unless `layers` is given."""
        count = config.num_hidden_layers if layers is None else layers
        latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
        if format != "fp8":
            return cls(count, latent + rope, _DTYPES[format])
        return cls(count, latent, _DTYPES[format], rope + scale_groups(latent))

    @property
    def bytes_per_token(self) -> int:
        """Over all layers."""
        return self.layers * (self.width * itemsize(self.dtype) + self.side_width * itemsize(_SIDE_DTYPE))


class LatentCache:
    """Room for `slots` sequences of up to `capacity` tokens each.

    One array per layer, [slots, capacity, width], so that a range of slots is a contiguous view of it; an fp8 cache
    has a second one of the side numbers. `lengths` (int64[slots]) counts the valid rows of each slot; whoever runs a
    session keeps it.

    Raises ResourceError when the memory cannot be had.
    """

    def __init__(self, layout: CacheLayout, slots: int, capacity: int) -> None:
        self.layout, self.slots, self.capacity = layout, slots, capacity
        self.lengths = np.zeros(slots, np.int64)
        parts = [(layout.width, layout.dtype), (layout.side_width, _SIDE_DTYPE)]
        try:
            self._arrays, self._sides = (
                [np.zeros((slots, capacity, width), NUMPY[dtype]) for _ in range(layout.layers)]
                for width, dtype in parts
            )
        except (MemoryError, ValueError):
            nbytes = layout.bytes_per_token * slots * capacity
            raise ResourceError(
                f"not enough memory for a latent cache of {slots} x {capacity} tokens",
                expected=f"{nbytes / 1e9:.3f} GB",
                fix="Ask for fewer tokens or fewer prompts at once.",
            ) from None

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in (*self._arrays, *self._sides))

    def view(self, layer: int, slots: range) -> Array:
        """The rows of a contiguous range of slots, [len(slots), capacity, width], sharing the cache's memory."""
        return self._arrays[layer][self._checked(slots)]

    def side(self, layer: int, slots: range) -> Array:
        """As `view`, of the side numbers: bfloat16 [len(slots), capacity, side_width]."""
        return self._sides[layer][self._checked(slots)]

    def inputs(self, slots: range, first_layer: int = 0) -> Iterator[tuple[str, Array]]:
        """The views of all layers by the names that a graph has for them; its layers count from `first_layer`."""
        for layer in range(self.layout.layers):
            name = f"latent_cache.{first_layer + layer}"
            yield name, self.view(layer, slots)
            if self.layout.side_width:
                yield f"{name}.side", self.side(layer, slots)

    def copy_rows(self, slot: int, start: int, source: LatentCache, source_slot: int, rows: range) -> None:
        """Copies `rows` of another cache's slot into this one's, from row `start` on; the layouts must be equal."""
        if source.layout != self.layout or rows.step != 1 or start + len(rows) > self.capacity:
            raise InternalError(f"{rows} of a cache of {source.layout} do not fit row {start} of one of {self.layout}")
        place, taken = slice(start, start + len(rows)), slice(rows.start, rows.stop)
        for mine, other in zip((*self._arrays, *self._sides), (*source._arrays, *source._sides), strict=True):
            mine[slot, place] = other[source_slot, taken]

    def _checked(self, slots: range) -> slice:
        if slots.step != 1 or not 0 <= slots.start < slots.stop <= self.slots:
            raise InternalError(f"{slots} is no contiguous range of the cache's {self.slots} slots")
        return slice(slots.start, slots.stop)
