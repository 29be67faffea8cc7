"""Reads which external tensors an ONNX file wants, without the onnx package.

ONNX Runtime trusts the arrays that it is handed for them: a smaller one than the graph declares is read beyond its end.
So the weight table is compared with the graph before. This needs five fields of the format
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3export.runtime.protobuf import fields, messages, varints

_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_LOCATION = 1, 2, 8, 14
_EXTERNAL = 1


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose data is not in the file; `data_type` is a TensorProto.DataType."""

    name: str
    data_type: int
    shape: tuple[int, ...]


def external_initializers(model: bytes) -> dict[str, ExternalTensor]:
    """The external initializers of a serialized ModelProto's graph, by name. Raises MalformedMessageError."""
    tensors = {}
    for graph in messages(memoryview(model), _MODEL_GRAPH):
        for initializer in messages(graph, _GRAPH_INITIALIZER):
            tensor, is_external = _tensor(initializer)
            if is_external:
                tensors[tensor.name] = tensor
    return tensors


def _tensor(message: memoryview) -> tuple[ExternalTensor, bool]:
    name, data_type, location = "", 0, 0
    shape: list[int] = []
    for field, value in fields(message):
        if field == _TENSOR_DIMS:  # int64s, packed or one by one
            shape += [value] if isinstance(value, int) else varints(value)
        elif field == _TENSOR_DATA_TYPE and isinstance(value, int):
            data_type = value
        elif field == _TENSOR_LOCATION and isinstance(value, int):
            location = value
        elif field == _TENSOR_NAME and not isinstance(value, int):
            name = bytes(value).decode("utf-8", "replace")
    return ExternalTensor(name, data_type, tuple(shape)), location == _EXTERNAL
