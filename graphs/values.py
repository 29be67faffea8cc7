"""Small helpers on graph values."""

from __future__ import annotations

import onnx_ir as ir

_ROLE = "dsv3.role"


def like(value: ir.Value, name: str | None = None) -> ir.Value:
    """A new value of the same dtype, shape and role."""
    # A type is mutable and would be shared; of a value without one, the copy has none either.
    dtype = None if value.dtype is None else ir.TensorType(value.dtype)
    shape = None if value.shape is None else value.shape.copy()
    copy = ir.Value(name=name or value.name, type=dtype, shape=shape)
    copy.metadata_props.update(value.metadata_props)
    return copy


def own_copy(function: ir.Function) -> ir.Function:
    """A copy that shares nothing that can be altered. `Function.clone` shares the values' types."""
    copy = function.clone()
    _own_types(copy)
    return copy


def own_model(model: ir.Model) -> ir.Model:
    """A copy of a model that shares nothing that can be altered."""
    copy = model.clone()
    graphs: list[ir.Graph | ir.Function] = [copy.graph, *copy.functions.values()]
    for graph in graphs:
        _own_types(graph)
    return copy


def _own_types(graph: ir.Graph | ir.Function) -> None:
    for value in [*graph.inputs, *(value for node in graph for value in node.outputs)]:
        if value.dtype is not None:
            value.type = ir.TensorType(value.dtype)


def mark_weight(value: ir.Value) -> ir.Value:
    """Declare an input to be a weight, not a run-time argument."""
    value.metadata_props[_ROLE] = "weight"
    return value


def is_weight(value: ir.Value) -> bool:
    """Whether an input of a graph or function is a weight."""
    return value.metadata_props.get(_ROLE) == "weight"
