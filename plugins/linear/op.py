"""dsv3::Linear: a projection whose weight's precision the quantise pass decides."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.registry import Attributes, Dims, Op, Port


@torch.library.custom_op("dsv3::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """y = x @ weight^T.

    Args:
        x: [..., K] float.
        weight: [N, K] float, as stored in the checkpoint.

    Returns:
        [..., N], the dtype of `x`.
    """
    return x @ weight.T


@linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def function(dims: Dims, attributes: Attributes) -> str:
    return """
Linear (x, weight) => (y) {
    weight_t = Transpose <perm = [1, 0]> (weight)
    y = MatMul (x, weight_t)
}
"""


LINEAR = Op(
    name="Linear",
    torch_name="dsv3::linear",
    doc="y[..., N] = x[..., K] @ weight[N, K]^T.",
    inputs=(Port("x", ("float",), ("...", "K")), Port("weight", ("float",), ("N", "K"))),
    outputs=(Port("y", ("float",), ("...", "N")),),
    attributes=(),
    kernel=linear,
    function=function,
)
