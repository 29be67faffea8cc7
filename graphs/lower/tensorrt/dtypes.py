"""Types by three names: the graph's, safetensors' (in files of an engine), and TensorRT's."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.objects import DataType, Module

# safetensors name -> member of TensorRT's DataType. I4 is this program's own: two numbers in a byte.
MEMBERS: Mapping[str, str] = {
    "F32": "FLOAT",
    "F16": "HALF",
    "BF16": "BF16",
    "F8_E4M3": "FP8",
    "I4": "INT4",
    "I8": "INT8",
    "U8": "UINT8",
    "I32": "INT32",
    "I64": "INT64",
    "BOOL": "BOOL",
}
_STORED: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.INT4: "I4",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
    ir.DataType.INT32: "I32",
    ir.DataType.INT64: "I64",
    ir.DataType.BOOL: "BOOL",
}
# What activations and the cache may be, by the names that options have for it.
FLOAT_TYPES: Mapping[str, str] = {"fp32": "F32", "bf16": "BF16", "f16": "F16"}


def trt_type(trt: Module, stored: str) -> DataType:
    """TensorRT's member for a safetensors name."""
    return getattr(trt.DataType, MEMBERS[stored])


def stored_type(dtype: ir.DataType | None) -> str:
    """The safetensors name of a graph's type."""
    if dtype is None or dtype not in _STORED:
        raise InternalError(f"TensorRT has no type for {dtype}")
    return _STORED[dtype]


def stored_of(trt: Module, dtype: DataType) -> str:
    """The safetensors name of TensorRT's member."""
    return next(stored for stored, member in MEMBERS.items() if getattr(trt.DataType, member) == dtype)
