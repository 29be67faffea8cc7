"""Projections for the CUDA provider."""

from __future__ import annotations

from dsv3export.plugins.linear_fp8_block.matmul import BLOCK
from dsv3export.plugins.registry import Attributes, Dims, FunctionText


def linear(dims: Dims, attributes: Attributes) -> str:
    """A weight of any float type, as the checkpoint lays it out."""
    return """
Linear (x, weight) => (y) {
    narrow = CastLike (x, weight)
    product = com.microsoft.FusedMatMul <transB = 1> (narrow, weight)
    y = Cast <to = 1> (product)
}
"""


def linear_int(dims: Dims, attributes: Attributes) -> str:
    """com.microsoft.MatMulNBits, which computes in the type of its scales and does not round activations."""
    zero = ", zero_point" if "Z" in dims else ""
    return f"""
LinearInt (x, blocks, scale{zero}) => (y) {{
    narrow = CastLike (x, scale)
    product = com.microsoft.MatMulNBits <K = {dims["K"]}, N = {dims["N"]}, bits = {attributes["bits"]},
        block_size = {attributes["group"]}> (narrow, blocks, scale{zero})
    y = Cast <to = 1> (product)
}}
"""


def linear_fp8(to: int) -> FunctionText:
    """com.microsoft.MatMulBlockQuantizedFp8Weight in the ONNX type `to`, whose blocks are of one row."""

    def function(dims: Dims, attributes: Attributes) -> str:
        return f"""
LinearFp8Block (x, weight, scale_rows) => (y) {{
    narrow = Cast <to = {to}> (x)
    product = com.microsoft.MatMulBlockQuantizedFp8Weight <block_size = {BLOCK}> (narrow, weight, scale_rows)
    y = Cast <to = 1> (product)
}}
"""

    return function
