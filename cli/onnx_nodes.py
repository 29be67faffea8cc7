"""Counts the nodes of an ONNX file without the onnx package, which a machine that only runs engines does not have.

An ONNX file is one protobuf message; of its wire format only the skeleton is read here. Field numbers are those of
onnx.proto3: ModelProto.graph 7, ModelProto.functions 25, GraphProto.node 1, FunctionProto.node 7.
"""

from __future__ import annotations

from collections.abc import Iterator

_MODEL_GRAPH, _MODEL_FUNCTIONS, _GRAPH_NODE, _FUNCTION_NODE = 7, 25, 1, 7
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def count_nodes(model: bytes) -> tuple[int, int]:
    """Nodes of the main graph, and of all functions together.

    Raises:
        ValueError: `model` is no protobuf message.
    """
    graph_nodes = function_nodes = 0
    for number, message in _messages(memoryview(model)):
        if number == _MODEL_GRAPH:
            graph_nodes += sum(field == _GRAPH_NODE for field, _ in _messages(message))
        elif number == _MODEL_FUNCTIONS:
            function_nodes += sum(field == _FUNCTION_NODE for field, _ in _messages(message))
    return graph_nodes, function_nodes


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and content of each length-delimited field of a message; the others are skipped."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, position = _varint(data, position)
            continue
        if wire_type == _LENGTH:
            size, position = _varint(data, position)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if size > len(data) - position:
            raise ValueError(f"a field of {size} bytes at byte {position} of {len(data)}")
        if wire_type == _LENGTH:
            yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A variable-length integer and the position after it."""
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"an integer that does not end before byte {position}")
