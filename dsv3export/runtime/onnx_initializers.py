"""Reads which external tensors an ONNX file wants, without the onnx package.

ONNX Runtime trusts the arrays that it is handed for them: a smaller one than the graph declares is read beyond its end.
So the weight table is compared with the graph before. This needs five fields of the format
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) and the protobuf wire format
(https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_LOCATION = 1, 2, 8, 14
_EXTERNAL = 1


class MalformedGraphError(ValueError):
    """The bytes are no protobuf message."""


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer whose data is not in the file; `data_type` is a TensorProto.DataType."""

    name: str
    data_type: int
    shape: tuple[int, ...]


def external_initializers(model: bytes) -> dict[str, ExternalTensor]:
    """The external initializers of a serialized ModelProto's graph, by name. Raises MalformedGraphError."""
    tensors = {}
    for graph in _messages(memoryview(model), _MODEL_GRAPH):
        for initializer in _messages(graph, _GRAPH_INITIALIZER):
            tensor, is_external = _tensor(initializer)
            if is_external:
                tensors[tensor.name] = tensor
    return tensors


def _tensor(message: memoryview) -> tuple[ExternalTensor, bool]:
    name, data_type, location = "", 0, 0
    shape: list[int] = []
    for field, value in _fields(message):
        if field == _TENSOR_DIMS:  # int64s, packed or one by one
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field == _TENSOR_DATA_TYPE and isinstance(value, int):
            data_type = value
        elif field == _TENSOR_LOCATION and isinstance(value, int):
            location = value
        elif field == _TENSOR_NAME and not isinstance(value, int):
            name = bytes(value).decode("utf-8", "replace")
    return ExternalTensor(name, data_type, tuple(shape)), location == _EXTERNAL


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for field, value in _fields(message):
        if field == wanted and not isinstance(value, int):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message; a value is an integer or the bytes of a string or message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = _varint(message, position)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise MalformedGraphError(f"wire type {kind}")
        if position + size > len(message):
            raise MalformedGraphError("a field that ends behind its message")
        yield key >> 3, message[position : position + size]
        position += size


def _varints(packed: memoryview) -> list[int]:
    numbers, position = [], 0
    while position < len(packed):
        number, position = _varint(packed, position)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The base-128 number at `position` and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise MalformedGraphError("a number without end")
