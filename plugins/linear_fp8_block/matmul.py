"""The arithmetic of DeepSeek-V3's FP8 linears: activations in groups of 1 x 128, sums of 128 products, then scales."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 128
LARGEST = 448.0
"""The largest finite number of float8 e4m3."""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def quantise_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each 128 neighbours of a row by their largest magnitude and round to float8.

    Args:
        x: float32 [..., K]; the last group of a row may be cut.

    Returns:
        float8 e4m3 [..., K], and the scales, float32 [..., ceil(K / 128)]: amax / 448, or 1 where that is zero or
        subnormal.

    Source: ``act_quant_kernel`` in DeepSeek-V3's ``inference/kernel.py``.
    """
    width = x.shape[-1]
    groups = pad(x, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    scale = groups.abs().amax(dim=-1) / LARGEST
    scale = torch.where(scale < _SMALLEST_SCALE, 1.0, scale)
    quotient = groups / scale[..., None]
    return quotient.flatten(-2)[..., :width].to(torch.float8_e4m3fn), scale


def round_activations(x: Tensor) -> Tensor:
    """x as `quantise_activations` leaves it, in float32 again."""
    values, scale = quantise_activations(x)
    return values.to(torch.float32) * scale.repeat_interleave(BLOCK, dim=-1)[..., : x.shape[-1]]


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """weight * scale: float8 e4m3 [N, K] with the scales of its blocks -> float32 [N, K]."""
    rows, width = weight.shape
    spread = scale.repeat_interleave(BLOCK, dim=0)[:rows].repeat_interleave(BLOCK, dim=1)[:, :width]
    return weight.to(torch.float32) * spread


def fp8_matmul(x: Tensor, weight: Tensor, scale: Tensor, activations: str) -> Tensor:
    """y = x @ (weight * scale)^T, the products of 128 neighbours along K summed before the scales are applied.

    For each 128 of K, in ascending order: y += ((sum of products) * scale of x) * scale of weight, in float32. With
    quantised activations a sum of 128 products is exact in float64 (it spans 44 bits), so that it is rounded to float32
    once, and the result does not depend on the order of summation, on the number of rows or on threads. The published
    kernel adds the same products in float32.

    Args:
        x: float32 [..., K].
        weight: float8 e4m3 [N, K].
        scale: float32 [ceil(N / 128), ceil(K / 128)].
        activations: "1x128" rounds `x` as `quantise_activations` does; "none" takes it as it is.

    Returns:
        float32 [..., N].

    Source: ``fp8_gemm_kernel`` in DeepSeek-V3's ``inference/kernel.py``.
    """
    rows, width = weight.shape
    row_scales = scale.repeat_interleave(BLOCK, dim=0)[:rows]
    y = x.new_zeros(*x.shape[:-1], rows)
    exact = torch.float32 if activations == "none" else torch.float64
    values, x_scales = (x, None) if activations == "none" else quantise_activations(x)
    for block, begin in enumerate(range(0, width, BLOCK)):
        part = slice(begin, begin + BLOCK)
        sums = (values[..., part].to(exact) @ weight[:, part].to(exact).T).to(torch.float32)
        if x_scales is not None:
            sums *= x_scales[..., block, None]
        y += sums * row_scales[:, block]
    return y
