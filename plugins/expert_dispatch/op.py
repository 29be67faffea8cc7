"""dsv3::ExpertDispatch: the rows that go to the experts of this rank."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port


def expert_dispatch(
    x: Tensor, ids: Tensor, weights: Tensor, first: int, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A row for each pair of a token and an expert that it chose, of the experts first .. first + count - 1.

    There is always a row, for kernels that take no empty input: where no token chose any of these experts, the first
    token is sent to the first of them with weight 0.

    Args:
        x: [T, D].
        ids: [T, k] int64, of all experts.
        weights: [T, k].

    Returns:
        rows [P, D], their experts' numbers among those of this rank [P, 1], weights [P, 1], and tokens [P] int64.
    """
    here = (ids >= first) & (ids < first + count)
    kept = here.clone()
    kept[0, 0] |= ~here.any()
    token, choice = torch.where(kept)
    mine = here[token, choice]
    expert = torch.where(mine, ids[token, choice] - first, 0)
    weight = torch.where(mine, weights[token, choice], 0.0)
    return x[token], expert[:, None], weight[:, None], token


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text."""
    first, k = attributes["first"], dims["k"]
    return f"""
ExpertDispatch (x, ids, weights) => (rows, row_ids, row_weights, tokens) {{
    flat = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    zero_weight = Constant <value_float = 0.0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_int = {first}> ()
    end = Constant <value_int = {first + attributes["count"]}> ()
    choices = Constant <value_int = {k}> ()
    all_ids = Reshape (ids, flat)
    all_weights = Reshape (weights, flat)
    above = GreaterOrEqual (all_ids, first)
    below = Less (all_ids, end)
    here = And (above, below)
    here_count = Cast <to = 7> (here)
    any = ReduceMax <keepdims = 1> (here_count)
    none = Equal (any, zero)
    pair_count = Size (all_ids)
    pairs = Range (zero, pair_count, one)
    is_first = Equal (pairs, zero)
    forced = And (is_first, none)
    kept = Or (here, forced)
    places = NonZero (kept)
    place = Reshape (places, flat)
    tokens = Div (place, choices)
    rows = Gather <axis = 0> (x, tokens)
    mine = Gather <axis = 0> (here, place)
    chosen_ids = Gather <axis = 0> (all_ids, place)
    local_ids = Sub (chosen_ids, first)
    row_id = Where (mine, local_ids, zero)
    chosen_weights = Gather <axis = 0> (all_weights, place)
    row_weight = Where (mine, chosen_weights, zero_weight)
    row_ids = Unsqueeze (row_id, flat)
    row_weights = Unsqueeze (row_weight, flat)
}}
"""


EXPERT_DISPATCH = Op(
    name="ExpertDispatch",
    torch_name="dsv3::expert_dispatch",
    doc="The pairs of a token and an expert of this rank, a row each; at least one, with weight 0 if there is none.",
    inputs=(
        Port("x", ("float",), ("T", "D")),
        Port("ids", ("int64",), ("T", "k")),
        Port("weights", ("float",), ("T", "k")),
    ),
    outputs=(
        Port("rows", ("float",), ("P", "D")),
        Port("row_ids", ("int64",), ("P", "1")),
        Port("row_weights", ("float",), ("P", "1")),
        Port("tokens", ("int64",), ("P",)),
    ),
    attributes=(
        Attribute("first", "int", "the first expert of this rank"),
        Attribute("count", "int", "how many it has"),
    ),
    kernel=expert_dispatch,
    function=function,
)
