"""Banks of experts that are too large to hold: one expert at a time, and the experts' ops on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3export.errors import InternalError


@dataclass(frozen=True)
class StreamedBank:
    """A bank [E, ...] that is read when it is used.

    Args:
        expert: Gives one expert, [1, ...].
    """

    expert: Callable[[int], Tensor]


Argument = Tensor | StreamedBank
# An op of routed experts: x [T, D], ids [T, k], weights [T, k], and its banks -> [T, D].
ExpertsKernel = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor]], Tensor]


def held(value: Argument) -> Tensor:
    """A value that is no streamed bank; only the experts' ops take those."""
    if isinstance(value, StreamedBank):
        raise InternalError("a bank of experts is used by an op that is not the experts'")
    return value


def through_streamed_experts(
    kernel: ExpertsKernel, x: Tensor, ids: Tensor, weights: Tensor, banks: Sequence[Argument]
) -> Tensor:
    """Run an op of routed experts with one expert in memory at a time; what the op does with the whole banks: [T, D].

    For each expert that was chosen, the op sees the tokens that chose it and banks of that one expert.
    """
    out = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        token, choice = torch.where(ids == expert)
        only = torch.zeros_like(token)[:, None]
        alone = [bank.expert(expert) if isinstance(bank, StreamedBank) else bank[expert, None] for bank in banks]
        out.index_add_(0, token, kernel(x[token], only, weights[token, choice, None], alone))
    return out
