"""numpy arrays as torch tensors and back, in the types that one of the two lacks."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from dsv3export.dtypes import NUMPY

_TORCH = {NUMPY["F8_E4M3"]: torch.float8_e4m3fn, NUMPY["BF16"]: torch.bfloat16}
_NUMPY = {theirs: ours for ours, theirs in _TORCH.items()}


def torch_tensor(array: NDArray[Any]) -> torch.Tensor:
    """The same memory; torch does not know ml_dtypes' types."""
    if array.dtype not in _TORCH:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(f"u{array.itemsize}")).view(_TORCH[array.dtype])


def numpy_array(tensor: torch.Tensor) -> NDArray[Any]:
    """The same memory, in ml_dtypes' types where numpy has none of its own."""
    if tensor.dtype not in _NUMPY:
        return tensor.numpy()
    dtype = _NUMPY[tensor.dtype]
    bits = tensor.view(torch.uint8 if dtype.itemsize == 1 else torch.uint16)
    return bits.numpy().view(dtype)
