"""Counts the nodes of an ONNX file without the onnx package, which a machine that only runs engines does not have.

Field numbers are those of onnx.proto3: ModelProto.graph 7, ModelProto.functions 25, GraphProto.node 1,
FunctionProto.node 7.
"""

from __future__ import annotations

from dsv3export.runtime.protobuf import messages

_MODEL_GRAPH, _MODEL_FUNCTIONS, _GRAPH_NODE, _FUNCTION_NODE = 7, 25, 1, 7


def count_nodes(model: bytes) -> tuple[int, int]:
    """Nodes of the main graph, and of all functions together.

    Raises:
        MalformedMessageError: `model` is no protobuf message.
    """
    return _count(model, _MODEL_GRAPH, _GRAPH_NODE), _count(model, _MODEL_FUNCTIONS, _FUNCTION_NODE)


def _count(model: bytes, outer: int, node: int) -> int:
    return sum(1 for message in messages(memoryview(model), outer) for _ in messages(message, node))
