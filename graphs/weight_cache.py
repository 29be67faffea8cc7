"""Weights for the executor, made when asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.graphs.weight_plan import Packer


class WeightCache:
    """Torch weights by graph name; keeps the latest ones up to a budget of bytes.

    A model that does not fit is streamed: each layer's weights are read again when its turn comes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        exprs: Mapping[str, WeightExpr],
        max_bytes: int,
        calibration: Calibration | None = None,
    ) -> None:
        self._packer = Packer(checkpoint, calibration)
        self._exprs = exprs
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        array = self._packer.pack(self._exprs[name])
        tensor = torch_tensor(array if array.flags.writeable else array.copy())
        self._kept[name] = tensor
        self._bytes += tensor.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return tensor
