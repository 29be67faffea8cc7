"""An integer weight: unsigned numbers, the scales of their groups, and zero points where it is asymmetric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
_BELOW, _LARGEST = 0xFFFF, torch.finfo(torch.bfloat16).max  # bits of a float32 that a bfloat16 does not have
_Number = TypeVar("_Number", np.float32, np.uint8)


@dataclass(frozen=True)
class IntWeight:
    """The value of element (n, k), in group g = k // group, is ``(q[n, k] - zero_point[n, g]) * scale[n, g]``.

    Attributes:
        q: uint8 [..., N, K], in 0..2^bits - 1.
        scale: float32 [..., N, G], G = ceil(K / group), of values that bfloat16 has, so that a kernel may keep them in
            16 bits; never zero, and negative where that fits a group better.
        zero_point: uint8 [..., N, G]; None stands for 2^(bits-1) everywhere (symmetric).
    """

    q: UInt8
    scale: Float32
    zero_point: UInt8 | None


def middle(bits: int) -> int:
    """The zero point of a symmetric weight."""
    return 1 << (bits - 1)


def stored_scale(scale: Tensor) -> Tensor:
    """The next scale away from zero that bfloat16 has, float32: a step is wider by 0.8 % at most, and clips nothing."""
    raised = (scale.contiguous().view(torch.int32) + _BELOW) & ~_BELOW
    return raised.view(torch.float32).clamp(-_LARGEST, _LARGEST)


def in_groups(array: NDArray[_Number], group: int) -> NDArray[_Number]:
    """[..., N, K] -> [..., N, G, group], the last group filled up with zeros."""
    missing = -array.shape[-1] % group
    if missing:
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
    return array.reshape(*array.shape[:-1], -1, group)


def out_of_groups(array: NDArray[_Number], width: int) -> NDArray[_Number]:
    """[..., N, G, group] -> [..., N, K], the inverse of `in_groups` for K = `width`."""
    return array.reshape(*array.shape[:-2], -1)[..., :width]
