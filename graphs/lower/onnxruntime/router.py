"""The router's weight in the type that the checkpoint stores it in.

It is multiplied in float32, as the reference does. But where an engine leaves the experts in the checkpoint, float32
copies of their routers would be nearly all that it stores: 426 MB for DeepSeek-V3.
"""

from __future__ import annotations

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.onnxruntime.functions import FUNCTION_DOMAIN, OpFunctions
from dsv3export.graphs.passes.quantise import component_of
from dsv3export.graphs.rewrite import KindRewriter

# The weight is reshaped to 0 * (a size that only a run knows), and 0 stands for "as it is": else the cast would be
# folded into a float32 copy, for which ONNX Runtime looks in the file even if the weight is bound.
_WIDEN = """
Widen (x, stored) => (wide) {
    rows = Shape <start = 0, end = 1> (x)
    zeros = Constant <value_ints = [0, 0]> ()
    as_it_is = Mul (rows, zeros)
    same = Reshape (stored, as_it_is)
    wide = Cast <to = 1> (same)
}
"""


def store_router(rewriter: KindRewriter, dtype: ir.DataType, op_functions: OpFunctions) -> None:
    """Keep the routers of a layer kind in `dtype` and widen them in each step.

    Given -> Result::

    y = dsv3::Linear(x, mlp.gate.weight: f32)       w = dsv3.lowered::Widen(x, mlp.gate.weight: bf16)
                                                    y = dsv3::Linear(x, w)
    """
    for node in [node for node in rewriter.function if node.op_type == "Linear" and component_of(node) is None]:
        x, weight = node.inputs
        if x is None or weight is None:
            raise InternalError(f"the router {node.name} lacks an input")
        wide = ir.Value(name=f"{weight.name}.wide", type=ir.TensorType(ir.DataType.FLOAT), shape=weight.shape)
        name = op_functions.name_for("Widen", _WIDEN)
        widen = ir.node(
            name, [x, rewriter.store_as(weight, dtype)], domain=FUNCTION_DOMAIN, outputs=[wide], name=wide.name
        )
        widen.metadata_props.update(node.metadata_props)
        rewriter.function.insert_before(node, [widen])
        node.replace_input_with(1, wide)
