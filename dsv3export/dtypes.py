"""The safetensors dtype names that this program reads and writes, as numpy dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np

NUMPY: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""safetensors dtype name -> numpy dtype (all little-endian, as the format demands)."""


def itemsize(name: str) -> int:
    """Bytes of one element of the safetensors dtype `name`, e.g. 2 for ``"BF16"``."""
    return NUMPY[name].itemsize
