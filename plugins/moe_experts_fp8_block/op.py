"""dsv3::MoEExpertsFp8Block: the routed experts with float8 e4m3 weights and a scale for each block of 128 x 128."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.linear_fp8_block.function import dequantise_text, rounded_text
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK, fp8_matmul
from dsv3export.plugins.linear_fp8_block.op import ACTIVATIONS
from dsv3export.plugins.moe_experts.op import Bank, through_experts
from dsv3export.plugins.registry import Attributes, Dims, Op, Port


@torch.library.custom_op("dsv3::moe_experts_fp8_block", mutates_args=())
def moe_experts_fp8_block(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    up: Tensor,
    up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    activations: str,
) -> Tensor:
    """`moe_experts` with the products of `fp8_matmul`, one expert at a time.

    Args:
        x: [T, D] float32.
        ids: [T, k] int64, distinct within a row.
        weights: [T, k] float32.
        gate, up: float8 e4m3 [E, I, D]; down: float8 e4m3 [E, D, I].
        gate_scale, up_scale: float32 [E, ceil(I / 128), ceil(D / 128)]; down_scale: [E, ceil(D / 128), ceil(I / 128)].
        activations: "none", or "1x128" to round the inputs of all three products.

    Returns:
        [T, D].
    """
    banks = {"gate": (gate, gate_scale), "up": (up, up_scale), "down": (down, down_scale)}

    def project(bank: Bank, expert: int, rows: Tensor) -> Tensor:
        weight, scale = banks[bank]
        return fp8_matmul(rows, weight[expert], scale[expert], activations)

    return through_experts(x, ids, weights, project)


@moe_experts_fp8_block.register_fake
def _(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    up: Tensor,
    up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    activations: str,
) -> Tensor:
    return torch.empty_like(x)


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: a scan over the banks, in which the experts that were chosen are dequantised, one at a time.

    A scan, since Gather and Slice do not take float8.
    """
    hidden, width = dims["D"], dims["I"]
    wide, narrow = -(-hidden // BLOCK), -(-width // BLOCK)
    tokens = f"float[tokens, {hidden}]"
    return f"""
MoEExpertsFp8Block (x, ids, weights, gate, gate_scale, up, up_scale, down, down_scale) => (y) {{
    nothing = Constant <value_float = 0.0> ()
    x_shape = Shape (x)
    start = Expand (nothing, x_shape)
    zero_scalar = Constant <value_int = 0> ()
    one_scalar = Constant <value_int = 1> ()
    count = Constant <value_int = {dims["E"]}> ()
    experts = Range (zero_scalar, count, one_scalar)
    y = Scan <num_scan_inputs = 7, body = each_expert (
        {tokens} sum, int64 expert,
        float8e4m3fn[{width}, {hidden}] gate_q, float[{narrow}, {wide}] gate_s,
        float8e4m3fn[{width}, {hidden}] up_q, float[{narrow}, {wide}] up_s,
        float8e4m3fn[{hidden}, {width}] down_q, float[{wide}, {narrow}] down_s
    ) => ({tokens} sum_out) {{
        is_expert = Equal (ids, expert)
        marks = Cast <to = 7> (is_expert)
        mark = ReduceMax <keepdims = 0> (marks)
        is_chosen = Cast <to = 9> (mark)
        sum_out = If (is_chosen) <
            then_branch = chosen () => ({tokens} sum_more) {{
{_one_expert_text(dims, attributes)}
            }},
            else_branch = unchosen () => ({tokens} sum_same) {{
                sum_same = Identity (sum)
            }}
        >
    }}> (start, experts, gate, gate_scale, up, up_scale, down, down_scale)
}}
"""


def _one_expert_text(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: the tokens of an expert go through it and are added to `sum`."""
    values = "\n".join(
        f"""{dequantise_text(f"{name}_q", f"{name}_s", f"{name}_value", rows)}
    {name}_t = Transpose <perm = [1, 0]> ({name}_value)"""
        for name, rows in (("gate", dims["I"]), ("up", dims["I"]), ("down", dims["D"]))
    )
    return f"""
    places = NonZero (is_expert)
    pairs = Transpose <perm = [1, 0]> (places)
    token = Gather <axis = 0> (places, zero_scalar)
    rows = Gather <axis = 0> (x, token)
    shares = GatherND (weights, pairs)
    last = Constant <value_ints = [-1]> ()
    shares_column = Unsqueeze (shares, last)
{values}
{rounded_text("rows", "rows_seen", dims["D"], attributes)}
    gated = MatMul (rows_seen, gate_t)
    linear = MatMul (rows_seen, up_t)
    sigmoid = Sigmoid (gated)
    swish = Mul (gated, sigmoid)
    hidden = Mul (swish, linear)
{rounded_text("hidden", "hidden_seen", dims["I"], attributes)}
    result = MatMul (hidden_seen, down_t)
    weighted = Mul (result, shares_column)
    token_column = Unsqueeze (token, last)
    sum_more = ScatterND <reduction = "add"> (sum, token_column, weighted)"""


def _bank(name: str, rows: str, columns: str) -> tuple[Port, Port]:
    scale = Port(f"{name}_scale", ("float",), ("E", f"ceil({rows}/128)", f"ceil({columns}/128)"))
    return Port(name, ("float8e4m3fn",), ("E", rows, columns)), scale


MOE_EXPERTS_FP8_BLOCK = Op(
    name="MoEExpertsFp8Block",
    torch_name="dsv3::moe_experts_fp8_block",
    doc="The routed experts of DeepSeekMoE, float8 e4m3 with a scale for each block of 128 x 128.",
    inputs=(
        Port("x", ("float",), ("T", "D")),
        Port("ids", ("int64",), ("T", "k")),
        Port("weights", ("float",), ("T", "k")),
        *_bank("gate", "I", "D"),
        *_bank("up", "I", "D"),
        *_bank("down", "D", "I"),
    ),
    outputs=(Port("y", ("float",), ("T", "D")),),
    attributes=(ACTIVATIONS,),
    kernel=moe_experts_fp8_block,
    function=function,
)
