"""numpy arrays as ONNX Runtime's values, in the types that numpy lacks too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsv3export.dtypes import NUMPY
from dsv3export.runtime.onnxruntime_module import ort

if TYPE_CHECKING:
    from numpy.typing import NDArray

# TensorProto.DataType of the safetensors dtypes
ONNX_TYPES = {
    "F32": 1, "U8": 2, "I8": 3, "I16": 5, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "F64": 11, "BF16": 16,
    "F8_E4M3": 17,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in NUMPY.items()}
_NOT_IN_NUMPY = ("BF16", "F8_E4M3")


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
