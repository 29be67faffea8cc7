"""The last rewrite before networks are defined: every node gets the inputs that its row takes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from dsv3export.graphs.lower.packed import node_dims, packed_inputs
from dsv3export.graphs.lower.tensorrt.row import Key, Row, find_row
from dsv3export.graphs.passes.quantise import component_of
from dsv3export.graphs.rewrite import GraphWithWeights, KindRewriter, rebuild
from dsv3export.graphs.values import is_weight
from dsv3export.plugins import DOMAIN

_ROUTER_TYPES = {"BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16}


def prepare(before: GraphWithWeights, rows: Mapping[Key, Row], router_dtype: str = "F32") -> GraphWithWeights:
    """Lay the weights out as the rows want them; the given graph is used up.

    Given -> Result, for a row that takes its weight signed::

        y = dsv3::LinearInt(x, w.q: u8[N, P], w.scale)      y = dsv3::LinearInt(x, w.signed: i8[N, K], w.scale)
        y = dsv3::Linear(x, mlp.gate.weight: f32[E, D])     y = dsv3::Linear(x, mlp.gate.weight: bf16[E, D])

    Args:
        router_dtype: safetensors dtype of the routers' weights in the engine; they are multiplied in float32 whatever
            it is. As float32 copies they would be nearly all that an engine stores that leaves its experts in the
            checkpoint.
    """
    kinds = {}
    for function in before.model.functions.values():
        rewriter = KindRewriter(function)
        for node in [node for node in function if node.domain == DOMAIN]:
            if router_dtype in _ROUTER_TYPES and is_router(node):
                _store_router(rewriter, node, _ROUTER_TYPES[router_dtype])
            else:
                _prepare_node(rewriter, node, rows)
        kinds[function.name] = rewriter.finish()
    return rebuild(before, kinds, list(before.model.functions.values()))


def is_router(node: ir.Node) -> bool:
    """Whether a node is the product of a router, whose scores stay in float32."""
    return (node.domain, node.op_type) == (DOMAIN, "Linear") and component_of(node) is None


def _store_router(rewriter: KindRewriter, node: ir.Node, dtype: ir.DataType) -> None:
    for port, value in enumerate(node.inputs):
        if value is not None and is_weight(value):
            node.replace_input_with(port, rewriter.store_as(value, dtype))


def _prepare_node(rewriter: KindRewriter, node: ir.Node, rows: Mapping[Key, Row]) -> None:
    row = find_row(rows, node)
    if row.inputs is None and not row.packed:
        return
    dims = node_dims(node)
    attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
    values = packed_inputs(rewriter, node, row.packed_for(dims, attributes), dims)
    names = row.inputs_for(dims, attributes) or tuple(values)
    rewriter.replace(node, node.op_type, node.domain, [values.get(name) for name in names], attributes)
