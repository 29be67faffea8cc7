"""What a legal intermediate graph is: a table of rules, checked at the borders of the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.torch_kernels import KERNELS
from dsv3export.plugins import ALL_OPS, DOMAIN
from dsv3export.plugins.dims import bind_dims

Dims = list[int | str]

# The standard ops that the graph may use: those that the executor, the oracle, can run.
STANDARD_OPS = frozenset(KERNELS)
_ATTRIBUTE_TYPES = {
    "int": ir.AttributeType.INT,
    "float": ir.AttributeType.FLOAT,
    "string": ir.AttributeType.STRING,
}

Rule = Callable[[ir.Node], Iterator[str]]


def verify(model: ir.Model) -> None:
    """Check every node against `NODE_RULES` and every call against its function.

    Raises:
        InternalError: Names the first offending node and every rule it breaks.
    """
    for function in model.functions.values():
        if function.domain == KIND_DOMAIN:
            _check(function.name, function, NODE_RULES)
    _check(str(model.graph.name), model.graph, (_call_rule(model),))


def _check(where: str, nodes: ir.Graph | ir.Function, rules: tuple[Rule, ...]) -> None:
    for node in nodes:
        complaints = [complaint for rule in rules for complaint in rule(node)]
        if complaints:
            raise InternalError(f"{where}/{node.name} ({node.domain}::{node.op_type}): {'; '.join(complaints)}")


def _known_op(node: ir.Node) -> Iterator[str]:
    legal = STANDARD_OPS if node.domain == "" else set(ALL_OPS) if node.domain == DOMAIN else set()
    if node.op_type not in legal:
        yield "is not an op of the intermediate graph"


def _typed_values(node: ir.Node) -> Iterator[str]:
    for value in node.outputs:
        if not value.name or value.dtype is None or value.shape is None:
            yield f"output {value.name!r} lacks a name, dtype or shape"


def _provenance(node: ir.Node) -> Iterator[str]:
    if "dsv3.module" not in node.metadata_props:
        yield "does not know its module path"


def _schema(node: ir.Node) -> Iterator[str]:
    if node.domain != DOMAIN or node.op_type not in ALL_OPS:
        return
    op = ALL_OPS[node.op_type]
    inputs = op.inputs_given(len(node.inputs))
    if len(node.inputs) != len(inputs) or len(node.outputs) != len(op.outputs):
        yield f"has {len(node.inputs)} inputs and {len(node.outputs)} outputs"
        return
    for port, value in zip((*inputs, *op.outputs), (*node.inputs, *node.outputs), strict=True):
        if value is None or value.dtype is None or value.dtype.name.lower() not in map(_ir_name, port.dtypes):
            yield f"{port.name} is not one of {', '.join(port.dtypes)}"
    expected = {attribute.name: _ATTRIBUTE_TYPES[attribute.type] for attribute in op.attributes}
    actual = {attribute.name: attribute.type for attribute in node.attributes.values()}
    if expected != actual:
        yield f"attributes are {sorted(actual)}, the schema has {sorted(expected)}"
    try:
        bind_dims(op, [dims_of(value) for value in node.inputs if value is not None])
    except ValueError as error:
        yield str(error)


def _ir_name(dtype: str) -> str:
    return ir.DataType[dtype.upper()].name.lower()


def dims_of(value: ir.Value) -> Dims:
    """A value's shape as sizes and names of run-time sizes."""
    if value.shape is None:
        raise InternalError(f"{value.name} has no shape")
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]


def _call_rule(model: ir.Model) -> Rule:
    def rule(node: ir.Node) -> Iterator[str]:
        function = model.functions.get((node.domain, node.op_type, ""))
        if node.domain != KIND_DOMAIN or function is None:
            yield "the main graph may only call layer kinds"
            return
        if len(node.inputs) != len(function.inputs) or len(node.outputs) != len(function.outputs):
            yield "is called with the wrong number of arguments or results"
            return
        for actual, formal in zip(node.inputs, function.inputs, strict=True):
            if actual is None or (actual.dtype, actual.shape) != (formal.dtype, formal.shape):
                yield f"argument {formal.name} differs from its declaration"

    return rule


NODE_RULES: tuple[Rule, ...] = (_known_op, _typed_values, _provenance, _schema)
