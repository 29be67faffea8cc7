"""Weights for the executor, made when asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.packer import Packer
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.graphs.weight_groups import Group, weight_groups


class WeightCache:
    """Torch weights by graph name; keeps the latest ones up to a budget of bytes.

    A model that does not fit is streamed: each layer's weights are read again when its turn comes. Weights that are
    made of the same weights of the model, such as the numbers and the scales of one, are made and kept together.
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
        self._group_of = {name: group for group in weight_groups(exprs) for name in group}
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Group, dict[str, torch.Tensor]] = OrderedDict()

    def __getitem__(self, name: str) -> torch.Tensor:
        group = self._group_of[name]
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group][name]
        arrays = self._packer.pack_all([self._exprs[member] for member in group])
        tensors = {
            member: torch_tensor(array if array.flags.writeable else array.copy())
            for member, array in zip(group, arrays, strict=True)
        }
        self._kept[group] = tensors
        self._bytes += _nbytes(tensors)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _nbytes(dropped)
        return tensors[name]


def _nbytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
