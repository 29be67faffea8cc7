"""One row per dsv3 op: the function that ONNX Runtime gets for it, and how its weights are packed.

An op without a row of its own runs as its generic function in standard ops (`Op.function`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from dsv3export.graphs.lower.onnxruntime.mla_attention import function as mla_attention
from dsv3export.plugins import OPS
from dsv3export.plugins.registry import Attributes, Dims, FunctionText


@dataclass(frozen=True)
class Packed:
    """A weight input of the function that is made from weight inputs of the op.

    Args:
        port: The function's formal input.
        packing: A key of `dsv3export.graphs.packing.PACKINGS`.
        inputs: The op's formal inputs that it is made of.
        name: The last part of its name; the rest is that of the first input's weight.
        dims: Its shape: symbols of the op's dims, or products of a number and a symbol.
    """

    port: str
    packing: str
    inputs: tuple[str, ...]
    name: str
    dims: tuple[str, ...]

    def shape(self, dims: Dims) -> list[int]:
        """Its sizes for known dims."""
        return [prod(int(f) if f.isdecimal() else dims[f] for f in dim.split("*")) for dim in self.dims]


@dataclass(frozen=True)
class Row:
    """How ONNX Runtime runs an op.

    Args:
        function: Its text.
        inputs: The function's formal inputs, each an input of the op or the port of a packed weight.
        packed: The packed weights.
    """

    function: FunctionText
    inputs: tuple[str, ...]
    packed: tuple[Packed, ...] = ()


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
    "Linear": Row(_linear, ("x", "weight")),
    "MlaAttention": Row(
        mla_attention,
        ("q_nope", "q_pe", "cache", "w_uk", "w_uv", "start"),
        (
            Packed("w_uk", "w_uk", ("kv_b",), "w_uk", ("H", "Dn", "Dc")),
            Packed("w_uv", "w_uv", ("kv_b",), "w_uv", ("H", "Dc", "Dv")),
        ),
    ),
    "MoEExperts": Row(
        _moe_experts,
        ("x", "ids", "weights", "gate_up", "down"),
        (Packed("gate_up", "interleave_gate_up", ("gate", "up"), "gate_up_proj", ("E", "2*I", "D")),),
    ),
}


def row(op: str) -> Row:
    """The row of an op, or its generic one."""
    return ROWS.get(op) or generic_row(op)


def generic_row(op: str) -> Row:
    """An op as its function in standard ops, weights as they are."""
    return Row(OPS[op].function, tuple(port.name for port in OPS[op].inputs))
