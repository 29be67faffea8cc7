"""Tensors as they lie in an engine's buffers, and back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.replay_layers.layer import DTYPES, ReplayError


def tensor_of_bytes(data: NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> Tensor:
    """A copy of a buffer's bytes. INT4: two numbers to a byte, the first in the low four bits, as int8."""
    count = prod(shape)
    bits = torch.from_numpy(np.array(data))
    if dtype == "INT4":
        return unpack_int4(bits)[:count].reshape(tuple(shape))
    if dtype not in DTYPES:
        raise ReplayError(f"tensors of type {dtype} are not replayed")
    size = count * DTYPES[dtype].itemsize
    if bits.numel() < size:
        raise ReplayError(f"{bits.numel()} bytes for a tensor {dtype}{list(shape)}, which takes {size}")
    return bits[:size].view(DTYPES[dtype]).reshape(tuple(shape))


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 [n] -> int8 [2n], signed, low four bits first."""
    bits = packed.reshape(-1).to(torch.int16)
    numbers = torch.stack([bits & 15, bits >> 4], dim=-1).reshape(-1)
    return torch.where(numbers > 7, numbers - 16, numbers).to(torch.int8)
