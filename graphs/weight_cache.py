"""Weights for the executor, made when asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import prod

import numpy as np
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import forget_weight, weight_shape
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.packer import ALL, Packer
from dsv3export.graphs.row_ranges import kept_rows
from dsv3export.graphs.streamed_bank import Argument, StreamedBank
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.graphs.weight_groups import Group, calibrated, leaf_names, of_banks, weight_groups
from dsv3export.graphs.weight_units import row_cuts

_STREAMED_GROUPS = 3  # gate, up and down of a layer take turns


class WeightCache:
    """Torch weights by graph name; keeps the latest ones up to a budget of bytes.

    A model that does not fit is streamed: each layer's weights are read again when its turn comes, and of a bank that
    is larger than the budget each expert. Weights that are
    made of the same weights of the model, such as the numbers and the scales of one, are made and kept together.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        exprs: Mapping[str, WeightExpr],
        max_bytes: int,
        calibration: Calibration | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._packer = Packer(checkpoint, calibration)
        self._exprs = exprs
        self._group_of = {name: group for group in weight_groups(exprs) for name in group}
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Group, dict[str, torch.Tensor]] = OrderedDict()
        self._latest: dict[Group, tuple[int, dict[str, torch.Tensor]]] = {}

    def __getitem__(self, name: str) -> Argument:
        group = self._group_of[name]
        if self._is_streamed(group):
            return StreamedBank(partial(self._expert, group, name))
        if group not in self._kept:
            self._keep(group, self._made(group))
        self._kept.move_to_end(group)
        return self._kept[group][name]

    def forget(self) -> None:
        """Keep none of those that were made, nor the pages of the checkpoint that they were made of."""
        for group in {*self._kept, *self._latest}:
            for leaf in {leaf for name in group for leaf in leaf_names(self._exprs[name])}:
                forget_weight(leaf, self.checkpoint)
        self._kept.clear()
        self._latest.clear()
        self._bytes = 0

    def _is_streamed(self, group: Group) -> bool:
        """Banks larger than the budget are not held; the float32 that they are made of counts."""
        exprs = [self._exprs[name] for name in group]
        if not all(map(of_banks, exprs)):
            return False
        return (
            4 * sum(prod(weight_shape(leaf, self._packer.checkpoint)) for leaf in leaf_names(exprs[0]))
            > self._max_bytes
        )

    def _expert(self, group: Group, name: str, expert: int) -> torch.Tensor:
        """Numbers and scales of an expert are asked for one after the other: the latest expert of a group stays."""
        latest, tensors = self._latest.get(group, (-1, {}))
        if latest != expert:
            first, _ = kept_rows(self._exprs[name]) or (0, 0)
            tensors = self._made(group, slice(first + expert, first + expert + 1))
            self._latest[group] = expert, tensors
            while len(self._latest) > _STREAMED_GROUPS:
                del self._latest[next(iter(self._latest))]
        return tensors[name]

    def _made(self, group: Group, rows: slice = ALL) -> dict[str, torch.Tensor]:
        exprs = [self._exprs[member] for member in group]
        parts = [self._packer.pack_all(exprs, cut) for cut in self._cuts(exprs, rows)]
        arrays = [pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        return {
            member: torch_tensor(array if array.flags.writeable else array.copy())
            for member, array in zip(group, arrays, strict=True)
        }

    def _cuts(self, exprs: Sequence[WeightExpr], rows: slice) -> Iterable[slice]:
        """Packing takes several times what it packs: a large weight is made in parts."""
        if rows != ALL or not all(expr.inputs for expr in exprs) or any(map(calibrated, exprs)):
            return [rows]
        shapes = [weight_shape(leaf, self.checkpoint) for leaf in leaf_names(exprs[0])]
        return row_cuts(exprs, shapes, gptq=False)

    def _keep(self, group: Group, tensors: dict[str, torch.Tensor]) -> None:
        self._kept[group] = tensors
        self._bytes += _nbytes(tensors)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _nbytes(dropped)


def _nbytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
