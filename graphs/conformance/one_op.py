"""A graph of one layer kind that has one op, as the compiler's passes and lowerings take it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from dsv3export.graphs.conformance.calls import Array, OpCall
from dsv3export.graphs.opset import IR_VERSION, KIND_DOMAIN, OPSET, OPSET_IMPORTS
from dsv3export.graphs.packing import PACKINGS
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import verify
from dsv3export.graphs.values import like, mark_weight
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.plugins import DOMAIN, DOMAIN_VERSION
from dsv3export.plugins.registry import Port

KIND = "one_op"
# Every layer kind has it, and some lowerings read the step's shape from it.
STEP_ARGUMENT = "cos"


def one_op_graph(call: OpCall, with_step: bool = True) -> GraphWithWeights:
    """The call as a model: run-time inputs, `cos` [B, S, 1] if `with_step`, then the weights.

    The outputs have the op's names.
    """
    formals = {port.name: _input(call, port) for port in call.op.inputs if port.name in call.inputs}
    step = ir.Value(name=STEP_ARGUMENT, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "S", 1]))
    arguments = [*(formals[name] for name in call.run_time), *([step] if with_step else [])]
    weights = [mark_weight(formals[name]) for name in call.weights]
    results = [_output(call, port, formals) for port in call.op.outputs]
    attributes = {name: value for name, value in call.attributes.items() if value is not None}
    node = ir.node(call.op.name, list(formals.values()), attributes, domain=DOMAIN, outputs=results, name="op")
    node.metadata_props["dsv3.module"] = "op"
    inputs = [*arguments, *weights]
    body = ir.Graph(inputs, results, nodes=[node], opset_imports={"": OPSET, DOMAIN: DOMAIN_VERSION})
    function = ir.Function(KIND_DOMAIN, KIND, graph=body, attributes=[])
    outer, outputs = [like(value) for value in inputs], [like(value) for value in results]
    main = ir.node(KIND, outer, domain=KIND_DOMAIN, outputs=outputs, name=KIND)
    main.metadata_props["dsv3.path"] = ""
    graph = ir.Graph(outer, outputs, nodes=[main], opset_imports=dict(OPSET_IMPORTS), name="trunk")
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="dsv3export", functions=[function])
    verify(model)
    return GraphWithWeights.traced(model)


def weight_array(expr: WeightExpr, weights: Mapping[str, Array]) -> Array:
    """What a lowering wants of a call's weights; a leaf is the weight as the call has it."""
    if not expr.inputs:
        return weights[expr.name]
    return PACKINGS[expr.packing]([weight_array(each, weights) for each in expr.inputs], dict(expr.params))


def _input(call: OpCall, port: Port) -> ir.Value:
    dtype = ir.DataType.from_numpy(call.inputs[port.name].dtype)
    return ir.Value(name=port.name, type=ir.TensorType(dtype), shape=ir.Shape(call.graph_shape(port)))


def _output(call: OpCall, port: Port, formals: Mapping[str, ir.Value]) -> ir.Value:
    updated = dict(call.op.aliases).get(port.name)
    if updated is not None:
        return like(formals[updated], port.name)
    dtype = {"float": ir.DataType.FLOAT, "int64": ir.DataType.INT64}[port.dtypes[0]]
    return ir.Value(name=port.name, type=ir.TensorType(dtype), shape=ir.Shape(call.graph_shape(port)))
