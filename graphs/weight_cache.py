"""Float32 weights for the executor, read when asked for."""

from __future__ import annotations

from collections import OrderedDict

import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import load_float32


class WeightCache:
    """Float32 torch weights by graph name; keeps the latest ones up to a budget of bytes.

    A model that does not fit is streamed: each layer's weights are read again when its turn comes.
    """

    def __init__(self, checkpoint: Checkpoint, max_bytes: int) -> None:
        self._checkpoint = checkpoint
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        array = load_float32(name, self._checkpoint)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        self._kept[name] = tensor
        self._bytes += tensor.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return tensor
