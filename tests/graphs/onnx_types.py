"""The element types of all values of a lowered model, functions inlined, by rules of its own.

onnx's own inference knows nothing of com.microsoft. Here an op's outputs have the type of its first input, but for the
few in `_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto


@dataclass(frozen=True)
class TypedNode:
    """A node with the types of its inputs (None for one that is left out) and outputs, as ONNX spells them."""

    node: NodeProto
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]

    @property
    def op(self) -> str:
        """``domain:op_type``."""
        return f"{self.node.domain}:{self.node.op_type}"


def typed_nodes(model: ModelProto) -> list[TypedNode]:
    """All nodes, those of branches too, in an order in which values come before their uses."""
    flat = onnx.inliner.inline_local_functions(model)
    types = {value.name: _name(value.type.tensor_type.elem_type) for value in flat.graph.input}
    types |= {tensor.name: _name(tensor.data_type) for tensor in flat.graph.initializer}
    return list(_walk(flat.graph, types))


def _walk(graph: GraphProto, types: dict[str, str]) -> Iterator[TypedNode]:
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        inputs = tuple(types[name] if name else None for name in node.input)
        branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        for branch in branches:
            yield from _walk(branch, types)
        if branches:
            outputs = tuple(types[value.name] for value in branches[0].output)
        else:
            outputs = _RULES.get(node.op_type, _as_first)(inputs, attributes)
            outputs += outputs[-1:] * (len(node.output) - len(outputs))
        types.update(zip(node.output, outputs, strict=True))
        yield TypedNode(node, inputs, outputs)


Inputs = tuple[str | None, ...]
Rule = Callable[[Inputs, Mapping[str, AttributeProto]], tuple[str, ...]]


def _name(onnx_type: int) -> str:
    name: str = TensorProto.DataType.Name(onnx_type).lower()
    return name


def _as_first(inputs: Inputs, _: Mapping[str, AttributeProto]) -> tuple[str, ...]:
    return (str(inputs[0]),)


def _as_second(inputs: Inputs, _: Mapping[str, AttributeProto]) -> tuple[str, ...]:
    return (str(inputs[1]),)


def _fixed(*names: str) -> Rule:
    return lambda inputs, attributes: names


def _constant(_: Inputs, attributes: Mapping[str, AttributeProto]) -> tuple[str, ...]:
    ((name, attribute),) = attributes.items()
    return (_name(attribute.t.data_type) if name == "value" else "int64" if "int" in name else "float",)


_RULES: Mapping[str, Rule] = {
    "Cast": lambda inputs, attributes: (_name(attributes["to"].i),),
    "CastLike": _as_second,
    "Constant": _constant,
    "ConstantOfShape": lambda inputs, attributes: (_name(attributes["value"].t.data_type),),
    "DequantizeLinear": _as_second,
    "Equal": _fixed("bool"),
    "Greater": _fixed("bool"),
    "Less": _fixed("bool"),
    "Shape": _fixed("int64"),
    "TopK": lambda inputs, attributes: (str(inputs[0]), "int64"),
    "Where": _as_second,
}
