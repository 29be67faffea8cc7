"""The graph as text, for people and for golden tests: functions in full, the main graph a line per call."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

_SHORT_TYPES = {"FLOAT": "f32", "BFLOAT16": "bf16", "FLOAT16": "f16", "INT64": "i64", "BOOL": "bool"}


def print_graph(model: ir.Model) -> str:
    """Render a model.

    Constants stand inline where they are used; a layer's weight arguments are abbreviated to their common prefix.
    """
    blocks = [_function(function) for function in model.functions.values()]
    return "\n\n".join([*blocks, _main(model.graph)]) + "\n"


def _function(function: ir.Function) -> str:
    lines = [f"function {function.name} ("]
    lines += [f"    {_typed(value)}," for value in function.inputs]
    lines += [") {"]
    lines += [f"    {_node(node)}" for node in function if node.op_type != "Constant"]
    lines += [f"    return {', '.join(_name(value) for value in function.outputs)}", "}"]
    return "\n".join(lines)


def _main(graph: ir.Graph) -> str:
    lines = [f"graph {graph.name} ("]
    lines += [f"    {_typed(value)}," for value in graph.inputs]
    lines += [") {"]
    lines += [f"    {_call(node)}" for node in graph]
    lines += [f"    return {', '.join(_name(value) for value in graph.outputs)}", "}"]
    return "\n".join(lines)


def _call(node: ir.Node) -> str:
    """A call of a layer kind; weights (arguments that no node makes and that carry a layer's path) as one word."""
    path = node.metadata_props.get("dsv3.path", "")
    prefix = f"model.{path}."
    own = [value for value in node.inputs if value is not None]
    shown = [_name(value) for value in own if not (path and _name(value).startswith(prefix))]
    if path:
        shown.append(f"*{prefix}")
    return f"{_outputs(node)} = {node.op_type}({', '.join(shown)})"


def _node(node: ir.Node) -> str:
    inputs = ", ".join("-" if value is None else _operand(value) for value in node.inputs)
    attributes = ", ".join(f"{a.name}={_attribute(a)}" for a in node.attributes.values())
    domain = f"{node.domain}::" if node.domain else ""
    types = ", ".join(_type(value) for value in node.outputs)
    suffix = f" {{{attributes}}}" if attributes else ""
    return f"{_outputs(node)} = {domain}{node.op_type}({inputs}){suffix} -> {types}"


def _operand(value: ir.Value) -> str:
    producer = value.producer()
    if producer is None or producer.op_type != "Constant":
        return _name(value)
    return "".join(_attribute(attribute) for attribute in producer.attributes.values())


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if attribute.type is ir.AttributeType.FLOAT:
        return f"{value:.9g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{', '.join(str(item) for item in value)}]"
    return str(value)


def _outputs(node: ir.Node) -> str:
    return ", ".join(_name(value) for value in node.outputs)


def _typed(value: ir.Value) -> str:
    return f"{_name(value)}: {_type(value)}"


def _type(value: ir.Value) -> str:
    dtype = value.dtype.name if value.dtype else "?"
    dims = "?" if value.shape is None else ", ".join(_dim(dim) for dim in value.shape)
    return f"{_SHORT_TYPES.get(dtype, dtype.lower())}[{dims}]"


def _dim(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else str(dim.value or "?")


def _name(value: ir.Value) -> str:
    return str(value.name)
