"""The KV-latent cache: per token and layer one row of kv_lora_rank + qk_rope_head_dim numbers, nothing else."""

from __future__ import annotations

import numpy as np

from dsv3export.errors import InternalError, ResourceError

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


class LatentCache:
    """Room for `slots` sequences of up to `capacity` tokens each.

    One array per layer, [slots, capacity, width], so that a range of slots is a contiguous view of it.
    `lengths` (int64[slots]) counts the valid rows of each slot; whoever runs a session keeps it.

    Raises ResourceError when the memory cannot be had.
    """

    def __init__(
        self, layers: int, slots: int, capacity: int, width: int, dtype: type[np.floating] = np.float32
    ) -> None:
        self.layers, self.slots, self.capacity, self.width = layers, slots, capacity, width
        self.lengths = np.zeros(slots, np.int64)
        nbytes = layers * slots * capacity * width * np.dtype(dtype).itemsize
        try:
            self._arrays = [np.zeros((slots, capacity, width), dtype) for _ in range(layers)]
        except (MemoryError, ValueError):
            raise ResourceError(
                f"not enough memory for a latent cache of {slots} x {capacity} tokens",
                expected=f"{nbytes / 1e9:.3f} GB",
                fix="Ask for fewer tokens or fewer prompts at once.",
            ) from None

    @property
    def elements(self) -> int:
        """Numbers held: layers x slots x capacity x width."""
        return sum(array.size for array in self._arrays)

    def view(self, layer: int, slots: range) -> FloatArray:
        """The rows of a contiguous range of slots, [len(slots), capacity, width], sharing the cache's memory."""
        if slots.step != 1 or not 0 <= slots.start < slots.stop <= self.slots:
            raise InternalError(f"{slots} is no contiguous range of the cache's {self.slots} slots")
        return self._arrays[layer][slots.start : slots.stop]
