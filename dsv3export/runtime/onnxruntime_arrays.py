"""numpy arrays as ONNX Runtime's values, in the types that numpy lacks too."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv3export.dtypes import NUMPY
from dsv3export.runtime.onnxruntime_module import ort

if TYPE_CHECKING:
    from numpy.typing import NDArray

# TensorProto.DataType of the safetensors dtypes
ONNX_TYPES = {
    "F32": 1, "U8": 2, "I8": 3, "I16": 5, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "F64": 11, "BF16": 16,
    "F8_E4M3": 17,
}  # fmt: skip
_OF_ORT_NAME = {
    "tensor(float)": "F32", "tensor(int64)": "I64", "tensor(bfloat16)": "BF16", "tensor(float16)": "F16",
    "tensor(int8)": "I8",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in NUMPY.items()}
_NOT_IN_NUMPY = ("BF16", "F8_E4M3")


def dtype_name(ort_name: str) -> str:
    """The safetensors dtype of what ONNX Runtime calls e.g. ``tensor(float)``."""
    return _OF_ORT_NAME[ort_name]


def onnx_type(array: NDArray[Any]) -> int:
    """Its TensorProto.DataType."""
    return ONNX_TYPES[_NAMES[array.dtype]]


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """An array of a type that ONNX Runtime does not take from numpy, as unsigned integers."""
    return array.view(f"u{array.dtype.itemsize}") if _NAMES[array.dtype] in _NOT_IN_NUMPY else array


def ort_value(array: NDArray[Any]) -> ort.OrtValue:
    """The same memory, which has to outlive the value."""
    if _NAMES[array.dtype] in _NOT_IN_NUMPY:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits(array), onnx_type(array))
    return ort.OrtValue.ortvalue_from_numpy(array)


def graph_type(array: NDArray[Any]) -> NDArray[Any]:
    """An array in the type that graphs have for it: a float8 cache goes by its bits."""
    return array.view(np.int8) if array.dtype == NUMPY["F8_E4M3"] else array


def host_copy(value: ort.OrtValue) -> NDArray[Any]:
    """A copy of a value in the CPU's memory, also of types that ONNX Runtime hands to numpy in no other way."""
    dtype = NUMPY[_OF_ORT_NAME[value.data_type()]]
    count = int(np.prod(value.shape()))
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(value.data_ptr())
    return np.array(memory, np.uint8).view(dtype).reshape(value.shape())
