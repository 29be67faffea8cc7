"""dsv3::MoERoute in standard ONNX ops."""

from __future__ import annotations

from dsv3export.plugins.registry import Attributes, Dims


def _eligible(experts: int, n_group: int, topk_group: int, group_top: int) -> str:
    """ONNX text: `eligible` [T, E] = `choice` with the experts outside the best groups at -inf."""
    return f"""
    grouped_shape = Constant <value_ints = [-1, {n_group}, {experts // n_group}]> ()
    grouped = Reshape (choice, grouped_shape)
    group_top = Constant <value_ints = [{group_top}]> ()
    best, best_ids = TopK <axis = -1> (grouped, group_top)
    last = Constant <value_ints = [-1]> ()
    group_scores = ReduceSum <keepdims = 0> (best, last)
    topk_group = Constant <value_ints = [{topk_group}]> ()
    kept_scores, kept_groups = TopK <axis = -1> (group_scores, topk_group)
    group_zeros = Sub (group_scores, group_scores)
    one = Constant <value_float = 1.0> ()
    one_each = Sub (kept_scores, kept_scores)
    ones = Add (one_each, one)
    kept_flags = ScatterElements <axis = 1> (group_zeros, kept_groups, ones)
    kept = Cast <to = 9> (kept_flags)
    kept_column = Unsqueeze (kept, last)
    minus_infinity = Constant <value_float = -inf> ()
    eligible_groups = Where (kept_column, grouped, minus_infinity)
    flat_shape = Constant <value_ints = [-1, {experts}]> ()
    eligible = Reshape (eligible_groups, flat_shape)
"""


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text for E experts; ONNX TopK, like the reference, gives equal scores to the lower index."""
    experts, k, n_group = dims["E"], attributes["k"], attributes["n_group"]
    scores = "Sigmoid (logits)" if attributes["scoring"] == "sigmoid" else "Softmax <axis = -1> (logits)"
    eligible = _eligible(experts, n_group, attributes["topk_group"], attributes["group_top"]) if n_group > 1 else ""
    normalised = """
    total_axes = Constant <value_ints = [-1]> ()
    total = ReduceSum <keepdims = 1> (chosen, total_axes)
    tiny = Constant <value_float = 1e-20> ()
    positive = Add (total, tiny)
    shares = Div (chosen, positive)
"""
    return f"""
MoERoute (logits, bias) => (ids, weights) {{
    scores = {scores}
    choice = Add (scores, bias)
{eligible}
    k = Constant <value_ints = [{k}]> ()
    best_choice, ids = TopK <axis = -1> ({"eligible" if n_group > 1 else "choice"}, k)
    chosen = GatherElements <axis = 1> (scores, ids)
{normalised if attributes["normalize"] else ""}
    scaling = Constant <value_float = {attributes["scaling"]!r}> ()
    weights = Mul ({"shares" if attributes["normalize"] else "chosen"}, scaling)
}}
"""
