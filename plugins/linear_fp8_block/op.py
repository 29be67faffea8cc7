"""dsv3::LinearFp8Block: a projection with float8 e4m3 weights and a scale for each block of 128 x 128."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.linear_fp8_block.function import dequantise_text, rounded_text
from dsv3export.plugins.linear_fp8_block.matmul import fp8_matmul
from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port

ACTIVATIONS = Attribute("activations", "string", "none, or 1x128: inputs are rounded to e4m3 in groups of 128")


@torch.library.custom_op("dsv3::linear_fp8_block", mutates_args=())
def linear_fp8_block(x: Tensor, weight: Tensor, scale: Tensor, activations: str) -> Tensor:
    """y = x @ (weight * scale)^T as `fp8_matmul` defines it, in float32.

    Args:
        x: [..., K] float32.
        weight: [N, K] float8 e4m3.
        scale: [ceil(N / 128), ceil(K / 128)] float32.
        activations: "none", or "1x128" to round x first.

    Returns:
        [..., N].
    """
    return fp8_matmul(x, weight, scale, activations)


@linear_fp8_block.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, activations: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: dequantise, then multiply."""
    return f"""
LinearFp8Block (x, weight, scale) => (y) {{
{rounded_text("x", "x_seen", dims["K"], attributes)}
{dequantise_text("weight", "scale", "value", dims["N"])}
    value_t = Transpose <perm = [1, 0]> (value)
    y = MatMul (x_seen, value_t)
}}
"""


LINEAR_FP8_BLOCK = Op(
    name="LinearFp8Block",
    torch_name="dsv3::linear_fp8_block",
    doc="y[..., N] = x[..., K] @ (weight * scale)[N, K]^T, float8 e4m3 with a scale for each block of 128 x 128.",
    inputs=(
        Port("x", ("float",), ("...", "K")),
        Port("weight", ("float8e4m3fn",), ("N", "K")),
        Port("scale", ("float",), ("ceil(N/128)", "ceil(K/128)")),
    ),
    outputs=(Port("y", ("float",), ("...", "N")),),
    attributes=(ACTIVATIONS,),
    kernel=linear_fp8_block,
    function=function,
)
