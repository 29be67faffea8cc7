"""The rewrite: dsv3 nodes call ONNX Runtime's functions, and packed weights take the place of the checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from dsv3export.graphs.lower.onnxruntime.functions import FUNCTION_DOMAIN, ORT_DOMAIN, OpFunctions
from dsv3export.graphs.lower.onnxruntime.ops import RowOf, row
from dsv3export.graphs.lower.onnxruntime.router import store_router
from dsv3export.graphs.lower.packed import node_dims, packed_inputs
from dsv3export.graphs.opset import OPSET
from dsv3export.graphs.rewrite import GraphWithWeights, KindRewriter, rebuild
from dsv3export.graphs.values import is_weight
from dsv3export.plugins import ALL_OPS, COLLECTIVES, DOMAIN

_HALVES = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
# Tensor types of the safetensors dtypes that routers may have.
_STORED_TYPES = {"F32": ir.DataType.FLOAT, "BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16}


def lower(
    before: GraphWithWeights,
    row_of: RowOf = row,
    router_dtype: str = "F32",
    domains: Mapping[str, int] = MappingProxyType({}),
) -> GraphWithWeights:
    """Lower a graph for float32 arithmetic on ONNX Runtime; the given one is used up.

    Given -> Result::

        y = dsv3::Linear(x, w)              y = dsv3.lowered::Linear(x, w), a function of com.microsoft::FusedMatMul
        a = dsv3::MlaAttention(.., kv_b, start)
                                            a = dsv3.lowered::MlaAttention(.., w_uk, w_uv, start)
        e = dsv3::MoEExperts(x, ids, weights, gate, up, down)
                                            e = dsv3.lowered::MoEExperts(x, ids, weights, gate_up, down)
        y = dsv3::Linear(x, w: bf16)        y = dsv3.lowered::Linear_2(x, w), which widens w a tile at a time
        latent_cache.0: f8[B, T, Dc]        latent_cache.0: i8[B, T, Dc], the same bits

    Args:
        row_of: How an op is run; the default suits ONNX Runtime on a CPU.
        router_dtype: safetensors dtype of the routers' weights in the engine.
        domains: Version by domain of ops that are neither standard nor ONNX Runtime's.

    Returns:
        A graph that carries every function that it calls.
    """
    opset = max([OPSET, *(ALL_OPS[node.op_type].opset for node in _dsv3_nodes(before.model))])
    op_functions = OpFunctions(opset, domains)
    kinds = {}
    _caches_as_bits(before.model)
    for function in before.model.functions.values():
        rewriter = KindRewriter(function)
        if router_dtype != "F32":
            store_router(rewriter, _STORED_TYPES[router_dtype], op_functions)
        for node in [node for node in function if node.domain == DOMAIN and node.op_type not in COLLECTIVES]:
            _lower_node(rewriter, node, op_functions, row_of)
        if opset > OPSET:
            _fuse_swish(rewriter)
        kinds[function.name] = rewriter.finish()
        function.opset_imports.update({"": opset, FUNCTION_DOMAIN: 1})
    after = rebuild(before, kinds, [*before.model.functions.values(), *op_functions.all()])
    after.model.graph.opset_imports.update({"": opset, ORT_DOMAIN: 1, **domains})
    return after


def _fuse_swish(rewriter: KindRewriter) -> None:
    """ONNX Runtime has no Swish of its own, and does not inline opset 24's into a model of a later one."""
    for node in [node for node in rewriter.function if (node.domain, node.op_type) == ("", "Swish")]:
        inputs = [value for value in node.inputs if value is not None]
        rewriter.replace(node, "QuickGelu", ORT_DOMAIN, inputs, {"alpha": 1.0})
    rewriter.function.opset_imports[ORT_DOMAIN] = 1


def _dsv3_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for function in model.functions.values() for node in function if node.domain == DOMAIN]


def _caches_as_bits(model: ir.Model) -> None:
    """A float8 cache becomes int8: ONNX Runtime writes and slices no float8."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for value in [*graph.inputs, *(result for node in graph for result in node.outputs)]:
            if value.dtype == ir.DataType.FLOAT8E4M3FN and not is_weight(value):
                value.dtype = ir.DataType.INT8


def _lower_node(rewriter: KindRewriter, node: ir.Node, op_functions: OpFunctions, row_of: RowOf) -> None:
    """Make a dsv3 node a call of ONNX Runtime's function for it."""
    op, how = ALL_OPS[node.op_type], row_of(node.op_type, _has_halves(node))
    dims = node_dims(node)
    attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
    name = op_functions.name_for(op.name, how.function(dims, attributes))
    values = packed_inputs(rewriter, node, how.packed_for(dims), dims)
    arguments = {str(value.name): value for value in rewriter.function.inputs if not is_weight(value)}
    values |= {name: arguments[name] for name in how.arguments}
    inputs = [values[port] for port in how.inputs_for(dims) if port in values]
    rewriter.replace(node, name, FUNCTION_DOMAIN, [_typed(rewriter, node, value) for value in inputs])


def _has_halves(node: ir.Node) -> bool:
    """Whether an op's weights are in 16 bits; its cache is another matter."""
    return any(value is not None and is_weight(value) and value.dtype in _HALVES for value in node.inputs)


def _typed(rewriter: KindRewriter, node: ir.Node, value: ir.Value) -> ir.Value:
    """A float8 input by way of an Identity.

    ONNX Runtime works out which types a function's input may have from the standard ops that use it; where only another
    function does, it allows every type but float8.
    """
    if value.dtype != ir.DataType.FLOAT8E4M3FN:
        return value
    name = f"{value.name}.typed"
    typed = ir.Value(name=name, type=ir.TensorType(value.dtype), shape=value.shape)
    identity = ir.node("Identity", [value], outputs=[typed], name=name)
    identity.metadata_props.update(node.metadata_props)
    rewriter.function.insert_before(node, [identity])
    return typed
