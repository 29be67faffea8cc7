"""Reads which ops of a domain the functions of an ONNX file call, without the onnx package.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from dsv3export.runtime.protobuf import messages

_MODEL_FUNCTIONS = 25
_FUNCTION_NODE = 7
_NODE_OP, _NODE_DOMAIN = 4, 7


def ops_of_functions(model: bytes, domain: str) -> set[str]:
    """Names of the ops; those in the bodies of control flow are not looked at. Raises MalformedMessageError."""
    return {
        _text(node, _NODE_OP)
        for function in messages(memoryview(model), _MODEL_FUNCTIONS)
        for node in messages(function, _FUNCTION_NODE)
        if _text(node, _NODE_DOMAIN) == domain
    }


def _text(message: memoryview, field: int) -> str:
    return "".join(bytes(value).decode("utf-8", "replace") for value in messages(message, field))
