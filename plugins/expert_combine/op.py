"""dsv3::ExpertCombine: the experts' rows summed up by token; the inverse of dsv3::ExpertDispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.registry import Attributes, Dims, Op, Port


def expert_combine(rows: Tensor, tokens: Tensor, x: Tensor) -> Tensor:
    """y[t] = the sum of rows[p] over all p with tokens[p] = t.

    Args:
        rows: [P, D].
        tokens: [P] int64.
        x: [T, D], of which only the shape counts.
    """
    return torch.zeros_like(x).index_add_(0, tokens, rows)


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text."""
    return """
ExpertCombine (rows, tokens, x) => (y) {
    last = Constant <value_ints = [-1]> ()
    shape = Shape (x)
    nothing = ConstantOfShape <value = float[1] {0.0}> (shape)
    column = Unsqueeze (tokens, last)
    y = ScatterND <reduction = "add"> (nothing, column, rows)
}
"""


EXPERT_COMBINE = Op(
    name="ExpertCombine",
    torch_name="dsv3::expert_combine",
    doc="Rows of experts summed up by token; a token without a row gets zeros.",
    inputs=(
        Port("rows", ("float",), ("P", "D")),
        Port("tokens", ("int64",), ("P",)),
        Port("x", ("float",), ("T", "D")),
    ),
    outputs=(Port("y", ("float",), ("T", "D")),),
    attributes=(),
    kernel=expert_combine,
    function=function,
)
