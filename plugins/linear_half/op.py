"""dsv3::LinearHalf: a projection with bfloat16 or float16 weights, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.registry import Attributes, Dims, Op, Port


@torch.library.custom_op("dsv3::linear_half", mutates_args=())
def linear_half(x: Tensor, weight: Tensor) -> Tensor:
    """y = x @ weight^T.

    Args:
        x: [..., K] float32.
        weight: [N, K] bfloat16 or float16; float32 holds each of its numbers exactly.

    Returns:
        [..., N] float32.
    """
    return x @ weight.to(x.dtype).T


@linear_half.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text."""
    return """
LinearHalf (x, weight) => (y) {
    wide = Cast <to = 1> (weight)
    wide_t = Transpose <perm = [1, 0]> (wide)
    y = MatMul (x, wide_t)
}
"""


LINEAR_HALF = Op(
    name="LinearHalf",
    torch_name="dsv3::linear_half",
    doc="y[..., N] = x[..., K] @ weight[N, K]^T in float32, the weight in 16 bits.",
    inputs=(Port("x", ("float",), ("...", "K")), Port("weight", ("bfloat16", "float16"), ("N", "K"))),
    outputs=(Port("y", ("float",), ("...", "N")),),
    attributes=(),
    kernel=linear_half,
    function=function,
)
