"""One row per dsv3 op: the function that ONNX Runtime gets for it, and how its weights are packed.

An op without a row of its own runs as its generic function in standard ops (`Op.function`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3export.graphs.lower.onnxruntime.mla_attention import function as mla_attention
from dsv3export.plugins import OPS
from dsv3export.plugins.registry import Attributes, Dims, FunctionText


@dataclass(frozen=True)
class Packing:
    """A packed weight that takes the place of some of an op's weights.

    Args:
        packing: A key of `dsv3export.graphs.packing.PACKINGS`.
        inputs: The op's formal inputs that it is made of; it stands where the first of them stood.
        name: Replaces the last part of the first input's weight name.
        shape: Its dimensions, as symbols of the op's dims or products of a number and a symbol.
    """

    packing: str
    inputs: tuple[str, ...]
    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """How ONNX Runtime runs an op."""

    function: FunctionText
    packings: tuple[Packing, ...] = ()


def _linear(dims: Dims, attributes: Attributes) -> str:
    # transB keeps the checkpoint's [N, K] layout; prepacking turns it into MLAS's own at load.
    return """
Linear (x, weight) => (y) {
    y = com.microsoft.FusedMatMul <transB = 1> (x, weight)
}
"""


def _moe_experts(dims: Dims, attributes: Attributes) -> str:
    """com.microsoft.MoE routes by itself: softmax over its router input, the k best, renormalised.

    Given log(weight) for the chosen experts and a very low value elsewhere, its softmax is weight / sum(weights):
    exactly the choice and the proportions of MoERoute; the sum is multiplied back afterwards.
    """
    return f"""
MoEExperts (x, ids, weights, gate_up, down) => (y) {{
    last = Constant <value_ints = [-1]> ()
    tiny = Constant <value_float = 1e-30> ()
    positive = Max (weights, tiny)
    logs = Log (positive)
    tokens = Shape <start = 0, end = 1> (ids)
    experts = Constant <value_ints = [{dims["E"]}]> ()
    shape = Concat <axis = 0> (tokens, experts)
    unchosen = ConstantOfShape <value = float[1] {{-1000.0}}> (shape)
    router = ScatterElements <axis = 1> (unchosen, ids, logs)
    mixed = com.microsoft.MoE <k = {dims["k"]}, activation_type = "swiglu", swiglu_fusion = 1,
        activation_alpha = 1.0, activation_beta = 0.0, normalize_routing_weights = 1>
        (x, router, gate_up, , down)
    total = ReduceSum <keepdims = 1> (weights, last)
    y = Mul (mixed, total)
}}
"""


ROWS: Mapping[str, Row] = {
    "Linear": Row(_linear),
    "MlaAttention": Row(mla_attention),
    "MoEExperts": Row(
        _moe_experts,
        (Packing("interleave_gate_up", ("gate", "up"), "gate_up_proj", ("E", "2*I", "D")),),
    ),
}


def row(op: str) -> Row:
    """The row of an op, or its generic one."""
    return ROWS.get(op) or generic_row(op)


def generic_row(op: str) -> Row:
    """An op as its function in standard ops, weights as they are."""
    return Row(OPS[op].function)
