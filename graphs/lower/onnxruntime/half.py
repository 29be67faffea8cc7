"""dsv3::Linear and dsv3::MoEExperts with bfloat16 or float16 weights for ONNX Runtime on a CPU."""

from __future__ import annotations

from dsv3export.graphs.lower.onnxruntime.tiles import joined_text, product_text, tiles_text
from dsv3export.plugins.registry import Attributes, Dims


def linear(dims: Dims, attributes: Attributes) -> str:
    """The weight widened a tile of rows at a time."""
    rows, width = dims["N"], dims["K"]
    return f"""
Linear (x, weight) => (y) {{
    flat = Flatten <axis = -1> (x)
{tiles_text(("weight",), "flat", rows, width)}
{product_text("flat", "weight", "y_flat", rows)}
    lead = Shape <end = -1> (x)
    y_width = Constant <value_ints = [{rows}]> ()
    y_shape = Concat <axis = 0> (lead, y_width)
    y = Reshape <allowzero = 1> (y_flat, y_shape)
}}
"""


def moe_experts(dims: Dims, attributes: Attributes) -> str:
    """A scan over all experts, in which those that are chosen are widened; Gather would copy them first."""
    return f"""
MoEExperts (x, ids, weights, gate, up, down) => (y) {{
    nothing = Constant <value_float = 0.0> ()
    x_shape = Shape (x)
    start = Expand (nothing, x_shape)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    count = Constant <value_int = {dims["E"]}> ()
    experts = Range (zero, count, one)
    counts = Constant <value_ints = [{dims["E"]}]> ()
    none_chosen = ConstantOfShape <value = bool[1] {{0}}> (counts)
    all_shape = Constant <value_ints = [-1]> ()
    all_ids = Reshape (ids, all_shape)
    yes = Equal (all_ids, all_ids)
    are_chosen = ScatterElements <axis = 0> (none_chosen, all_ids, yes)
    y = Scan <num_scan_inputs = 5, body = each_expert (sum, expert, is_chosen, gate_e, up_e, down_e) => (sum_out) {{
        sum_out = If (is_chosen) <
            then_branch = chosen () => (sum_more) {{
{_one_expert_text(dims)}
            }},
            else_branch = unchosen () => (sum_same) {{
                sum_same = Identity (sum)
            }}
        >
    }}> (start, experts, are_chosen, gate, up, down)
}}
"""


def _one_expert_text(dims: Dims) -> str:
    """ONNX text: the tokens of `expert` go through it and are added to `sum`."""
    hidden, width = dims["D"], dims["I"]
    return f"""
    is_expert = Equal (ids, expert)
    places = NonZero (is_expert)
    pairs = Transpose <perm = [1, 0]> (places)
    token = Gather <axis = 0> (places, zero)
    rows = Gather <axis = 0> (x, token)
    shares = GatherND (weights, pairs)
    last = Constant <value_ints = [-1]> ()
    shares_column = Unsqueeze (shares, last)
{tiles_text(("gate_e", "up_e"), "rows", width, hidden)}
    inner_parts = Scan <num_scan_inputs = 2, body = each_inner (gate_tile, up_tile) => (inner_part) {{
        gate_wide = Cast <to = 1> (gate_tile)
        gated = com.microsoft.FusedMatMul <transB = 1> (rows, gate_wide)
        up_wide = Cast <to = 1> (up_tile)
        linear = com.microsoft.FusedMatMul <transB = 1> (rows, up_wide)
        sigmoid = Sigmoid (gated)
        swish = Mul (gated, sigmoid)
        inner_part = Mul (swish, linear)
    }}> (gate_e_tiles, up_e_tiles)
{joined_text("inner_parts", "inner", "rows", width)}
{tiles_text(("down_e",), "inner", hidden, width)}
{product_text("inner", "down_e", "result", hidden)}
    weighted = Mul (result, shares_column)
    token_column = Unsqueeze (token, last)
    sum_more = ScatterND <reduction = "add"> (sum, token_column, weighted)"""
