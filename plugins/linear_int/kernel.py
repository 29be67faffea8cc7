"""Triton: products with weights that are stored in fewer bits than activations have."""

from __future__ import annotations

import triton
import triton.language as tl

from dsv3export.plugins.kernels.products import weight_product


@triton.jit
def weight_only_gemm(
    x_ptr,
    weight_ptr,
    weight_scale_ptr,
    weight_zero_ptr,
    rows,
    y_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    ROUND: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y [rows, N] = x [rows, K] @ (value of the stored weight)^T; `weight_product` says how weights are stored.

    Grid: as `fp8_block_gemm`.
    """
    down = tl.cdiv(rows, ROWS)
    row = ((tl.program_id(0) % down) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(0) // down) * COLUMNS + tl.arange(0, COLUMNS)
    y = weight_product(
        x_ptr,
        row,
        row < rows,
        weight_ptr,
        weight_scale_ptr,
        weight_zero_ptr,
        column,
        N,
        K,
        FORMAT,
        GROUP,
        ROUND,
        INNER,
        ROWS,
        COLUMNS,
    )
    inside = (row < rows)[:, None] & (column < N)[None, :]
    tl.store(y_ptr + row[:, None] * N + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
