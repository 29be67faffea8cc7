"""Memory for values between segments, used again and again: its size is known from step to step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dsv3export.dtypes import NUMPY
from dsv3export.runtime.distributed.communicator import Array


class BufferPool:
    """Arrays by their number of bytes; one that was given back is taken again before a new one is made.

    A step of another size takes memory of its own; `keep` bounds how many sizes are kept.
    """

    def __init__(self, keep: int = 8) -> None:
        self._keep = keep
        self._free: dict[int, list[Array]] = defaultdict(list)

    def take(self, shape: Sequence[int], dtype: str) -> Array:
        """An array of unknown content; `dtype` is a safetensors dtype name."""
        nbytes = int(np.prod(shape)) * NUMPY[dtype].itemsize
        free = self._free[nbytes]
        memory = free.pop() if free else np.empty(nbytes, np.uint8)
        return memory.view(NUMPY[dtype]).reshape(tuple(shape))

    def give(self, array: Array) -> None:
        """Back to the pool; nothing may use it any more."""
        self._free.setdefault(array.nbytes, []).append(array.reshape(-1).view(np.uint8))
        while len(self._free) > self._keep:
            del self._free[next(iter(self._free))]
