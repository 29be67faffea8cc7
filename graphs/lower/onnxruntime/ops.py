"""One row per dsv3 op: the function that ONNX Runtime gets for it, and how its weights are packed.

An op without a row of its own runs as its generic function in standard ops (`Op.function`). The FP8 linear and experts
do: ONNX Runtime folds the scales' repetition and the transpose, but never a DequantizeLinear, so that the weight stays
FP8 in memory (Cast and Mul would be folded into a float32 copy of it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dsv3export.graphs.lower.onnxruntime import half
from dsv3export.graphs.lower.onnxruntime.mla_attention import STEP, head_groups
from dsv3export.graphs.lower.onnxruntime.mla_attention import fp8_function as mla_attention_fp8
from dsv3export.graphs.lower.onnxruntime.mla_attention import function as mla_attention
from dsv3export.graphs.lower.onnxruntime.mla_attention import half_function as mla_attention_half
from dsv3export.graphs.lower.onnxruntime.mla_attention import int_function as mla_attention_int
from dsv3export.graphs.lower.onnxruntime.mla_attention import int_inputs as mla_attention_int_inputs
from dsv3export.graphs.lower.onnxruntime.routing import router_text
from dsv3export.graphs.lower.packed import Packed
from dsv3export.plugins import ALL_OPS
from dsv3export.plugins.registry import Attributes, Dims, FunctionText


@dataclass(frozen=True)
class Row:
    """How ONNX Runtime runs an op.

    Args:
        function: Its text.
        inputs: The function's formal inputs, each an input of the op or the port of a packed weight; those that a
            node leaves out come last. They may depend on the op's dims.
        packed: The packed weights; these too.
        arguments: Arguments of the layer kind, by name, that are inputs of the function as well.
    """

    function: FunctionText
    inputs: tuple[str, ...] | Callable[[Dims], tuple[str, ...]]
    packed: tuple[Packed, ...] | Callable[[Dims], tuple[Packed, ...]] = ()
    arguments: tuple[str, ...] = ()

    def inputs_for(self, dims: Dims) -> tuple[str, ...]:
        """The function's formal inputs for known dims."""
        return self.inputs(dims) if callable(self.inputs) else self.inputs

    def packed_for(self, dims: Dims) -> tuple[Packed, ...]:
        """The packed weights for known dims."""
        return self.packed(dims) if callable(self.packed) else self.packed


# The row of an op, and of one whose weights are bfloat16 or float16.
RowOf = Callable[[str, bool], Row]


def _linear(dims: Dims, attributes: Attributes) -> str:
    # transB keeps the checkpoint's [N, K] layout; prepacking turns it into MLAS's own at load.
    return """
Linear (x, weight) => (y) {
    y = com.microsoft.FusedMatMul <transB = 1> (x, weight)
}
"""


def _moe_experts(dims: Dims, attributes: Attributes) -> str:
    """com.microsoft.MoE, whose router is made to choose as MoERoute did; see `router_text`."""
    return f"""
MoEExperts (x, ids, weights, gate_up, down) => (y) {{
{router_text(dims, "weights")}
    mixed = com.microsoft.MoE <k = {dims["k"]}, {_SWIGLU}, normalize_routing_weights = 1> (x, router, gate_up, , down)
    y = Mul (mixed, total)
}}
"""


_SWIGLU = 'activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.0, activation_beta = 0.0'


def _linear_int(dims: Dims, attributes: Attributes) -> str:
    """com.microsoft.MatMulNBits; accuracy level 4 computes with activations rounded to int8, 1 with float32."""
    zero = ", zero_point" if "Z" in dims else ""
    level = 4 if attributes["activations"] == "int8" else 1
    return f"""
LinearInt (x, blocks, scale{zero}) => (y) {{
    y = com.microsoft.MatMulNBits <K = {dims["K"]}, N = {dims["N"]}, bits = {attributes["bits"]},
        block_size = {attributes["group"]}, accuracy_level = {level}> (x, blocks, scale{zero})
}}
"""


def _moe_experts_int(dims: Dims, attributes: Attributes) -> str:
    """com.microsoft.QMoE, whose router is made to choose as MoERoute did.

    It chooses the k best of its router input and takes their weights, as they are, from its input `router_weights`.
    Both are `weights` at the chosen experts, and -1 elsewhere: no weight is negative.
    """
    zeros = ("gate_up_zero", "down_zero") if "Z" in dims else ("", "")
    given = ("x", "ids", "weights", STEP, "gate_up", "gate_up_scale", "down", "down_scale", *zeros)
    formals = ", ".join(filter(None, given))
    level = 4 if attributes["activations"] == "int8" else 1
    # with one expert for a row, the rows may be those of ExpertDispatch, which are as many as they happen to be
    tokens = f"""step = Shape <start = 0, end = 2> ({STEP})
    tokens = ReduceProd <keepdims = 1> (step)"""
    if dims["k"] == 1:
        tokens = "tokens = Shape <start = 0, end = 1> (ids)"
    return f"""
MoEExpertsInt ({formals}) => (y) {{
    {tokens}
    experts = Constant <value_ints = [{dims["E"]}]> ()
    shape = Concat <axis = 0> (tokens, experts)
    unchosen = ConstantOfShape <value = float[1] {{-1.0}}> (shape)
    router = ScatterElements <axis = 1> (unchosen, ids, weights)
    y = com.microsoft.QMoE <k = {dims["k"]}, {_SWIGLU}, normalize_routing_weights = 0,
        expert_weight_bits = {attributes["bits"]}, block_size = {attributes["group"]}, weights_prepacked = 0,
        accuracy_level = {level}>
        (x, router, gate_up, gate_up_scale, , down, down_scale, , , , , {", ".join(zeros)}, , router)
}}
"""


def _gate_up(port: str, inputs: tuple[str, str], last: str) -> Packed:
    return Packed(port, "interleave_gate_up", inputs, port, ("E", "2*I", last))


def _up_projections(dims: Dims) -> tuple[Packed, ...]:
    """MlaAttentionInt's 8-bit weights and scales, the matrices of a group of heads side by side."""
    packed = []
    for i, heads in enumerate(head_groups(dims)):
        params = {"first": heads.start, "heads": len(heads)}
        for part, rows, width in (("w_uk", "Dn", "Dc"), ("w_uv", "Dc", "Dv")):
            columns, name = f"{len(heads)}*{width}", f"{part}.{i}"
            scale_name = f"{name}.scale"
            packed.append(Packed(f"{part}_{i}_q", "head_columns", (part,), name, (rows, columns), params))
            packed.append(
                Packed(f"{part}_{i}_scale", "head_columns", (f"{part}_scale",), scale_name, ("1", columns), params)
            )
    return tuple(packed)


ROWS: Mapping[str, Row] = {
    "Linear": Row(_linear, ("x", "weight")),
    "LinearInt": Row(
        _linear_int,
        ("x", "blocks", "scale", "zero_point"),
        (Packed("blocks", "blocks", ("qweight",), "blocks", ("N", "G", "P/G")),),
    ),
    "MlaAttention": Row(
        mla_attention,
        ("q_nope", "q_pe", "cache", "w_uk", "w_uv", "start", STEP),
        (
            Packed("w_uk", "w_uk", ("kv_b",), "w_uk", ("H", "Dn", "Dc")),
            Packed("w_uv", "w_uv", ("kv_b",), "w_uv", ("H", "Dc", "Dv")),
        ),
        (STEP,),
    ),
    "MlaAttentionInt": Row(mla_attention_int, mla_attention_int_inputs, _up_projections, (STEP,)),
    "MlaAttentionFp8Block": Row(
        mla_attention_fp8, ("q_nope", "q_pe", "cache", "kv_b", "kv_b_scale", "start", STEP), arguments=(STEP,)
    ),
    "MoEExperts": Row(
        _moe_experts,
        ("x", "ids", "weights", "gate_up", "down"),
        (Packed("gate_up", "interleave_gate_up", ("gate", "up"), "gate_up_proj", ("E", "2*I", "D")),),
    ),
    "MoEExpertsInt": Row(
        _moe_experts_int,
        ("x", "ids", "weights", STEP, "gate_up", "gate_up_scale", "down", "down_scale", "gate_up_zero", "down_zero"),
        (
            _gate_up("gate_up", ("gate", "up"), "P"),
            _gate_up("gate_up_scale", ("gate_scale", "up_scale"), "G"),
            _gate_up("gate_up_zero", ("gate_zero", "up_zero"), "Z"),
        ),
        (STEP,),
    ),
}


# Of ops whose weights a graph holds in bfloat16 or float16.
HALF_ROWS: Mapping[str, Row] = {
    "Linear": Row(half.linear, ("x", "weight")),
    "MlaAttention": Row(mla_attention_half, ("q_nope", "q_pe", "cache", "kv_b", "start", STEP), arguments=(STEP,)),
    "MoEExperts": Row(half.moe_experts, ("x", "ids", "weights", "gate", "up", "down")),
}


def row(op: str, in_16_bits: bool = False) -> Row:
    """The row of an op, by whether its weights are bfloat16 or float16, or its generic one."""
    return (HALF_ROWS if in_16_bits else ROWS).get(op) or generic_row(op)


def generic_row(op: str, in_16_bits: bool = False) -> Row:
    """An op as its function in standard ops, weights as they are."""
    return Row(ALL_OPS[op].function, tuple(port.name for port in ALL_OPS[op].inputs))
