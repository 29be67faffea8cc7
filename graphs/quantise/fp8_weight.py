"""Weights in float8 e4m3 with one float32 scale for each block of 128 x 128, the format of DeepSeek-V3's checkpoint."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dsv3export.dtypes import NUMPY
from dsv3export.graphs.quantise.int_weight import Float32
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK, LARGEST

_SMALLEST_SCALE = np.finfo(np.float32).tiny


def quantise_blocks(weight: Float32) -> tuple[NDArray[np.generic], Float32]:
    """Scale each block by its largest magnitude and round to the nearest float8 (ties to even).

    Args:
        weight: float32 [..., N, K], finite.

    Returns:
        float8 e4m3 [..., N, K], and the scales, float32 [..., ceil(N / 128), ceil(K / 128)]: amax / 448, or 1 where a
        block is zero (or its amax / 448 would be subnormal: it is then rounded to zero). Blocks at the lower and
        right edge may be cut.

    Source: ``act_quant_kernel`` in DeepSeek-V3's ``inference/kernel.py``, with the blocks of ``weight_dequant_kernel``.
    """
    rows, columns = weight.shape[-2:]
    amax = np.maximum.reduceat(np.abs(weight), range(0, rows, BLOCK), axis=-2)
    amax = np.maximum.reduceat(amax, range(0, columns, BLOCK), axis=-1)
    scale = (amax / np.float32(LARGEST)).astype(np.float32)
    scale[scale < _SMALLEST_SCALE] = 1
    quotient = weight / _spread(scale, rows, columns)
    # Through torch: its conversion is the faster one, and ml_dtypes' agrees with it bit for bit.
    bits = torch.from_numpy(quotient).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return bits.view(NUMPY["F8_E4M3"]), scale


def dequantise_blocks(weight: NDArray[np.generic], scale: Float32) -> Float32:
    """The float32 value [..., N, K] of `quantise_blocks`' result; one rounding, that of the product."""
    bits = torch.from_numpy(np.ascontiguousarray(weight).view(np.uint8)).view(torch.float8_e4m3fn)
    value: Float32 = bits.to(torch.float32).numpy()
    value *= _spread(scale, *value.shape[-2:])
    return value


def _spread(scale: Float32, rows: int, columns: int) -> Float32:
    """Each scale repeated over its block: [..., ceil(N / 128), ceil(K / 128)] -> [..., N, K]."""
    across = np.repeat(scale, BLOCK, axis=-1)[..., :columns]
    return np.repeat(across, BLOCK, axis=-2)[..., :rows, :]
