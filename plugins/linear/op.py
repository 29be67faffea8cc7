"""dsv3::Linear: a projection whose weight's precision the quantise pass decides."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.registry import FLOATS, Attributes, Dims, Op, Port


@torch.library.custom_op("dsv3::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """y = x @ weight^T.

    Args:
        x: [..., K] float.
        weight: [N, K], as stored in the checkpoint: the dtype of `x` or a narrower float type, which is widened.

    Returns:
        [..., N], the dtype of `x`.
    """
    return x @ weight.to(x.dtype).T


@linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text; the cast does nothing to a float32 weight."""
    return """
Linear (x, weight) => (y) {
    wide = Cast <to = 1> (weight)
    weight_t = Transpose <perm = [1, 0]> (wide)
    y = MatMul (x, weight_t)
}
"""


LINEAR = Op(
    name="Linear",
    torch_name="dsv3::linear",
    doc="y[..., N] = x[..., K] @ weight[N, K]^T, in float32 whatever type holds the weight.",
    inputs=(Port("x", ("float",), ("...", "K")), Port("weight", FLOATS, ("N", "K"))),
    outputs=(Port("y", ("float",), ("...", "N")),),
    attributes=(),
    kernel=linear,
    function=function,
)
