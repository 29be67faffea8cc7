"""Triton: products with weights that are stored in fewer bits than activations have."""

from __future__ import annotations

import triton
import triton.language as tl

from dsv3export.plugins.kernels.products import Bank, place, store_part, weight_product


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
    SWAPPED: tl.constexpr,
    PARTS: tl.constexpr,
):
    """y [rows, N] = x [rows, K] @ (value of the stored weight)^T; `weight_product` says how weights are stored.

    Parts and grid: as `fp8_block_gemm`.
    """
    row, start = place(tl.program_id(0), rows, ROWS, N, COLUMNS)
    seen, part = row < rows, tl.program_id(1)
    form: tl.constexpr = (N, K, ROWS, COLUMNS, SWAPPED, PARTS, FORMAT, GROUP, ROUND, INNER)
    bank = Bank(weight_ptr, weight_scale_ptr, weight_zero_ptr)
    y, _ = weight_product(x_ptr, row, seen, bank, None, start, part, form)
    store_part(y_ptr, row, seen, rows, start, part, y, N)


@triton.jit
def sum_parts(partial_ptr, rows, y_ptr, N: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """partial [PARTS, rows, N] -> y [rows, N], in the order of parts. Grid: (rows, ceil(N / COLUMNS))."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(partial_ptr + (part * rows + row) * N + column, mask=column < N, other=0.0)
    tl.store(y_ptr + row * N + column, total.to(y_ptr.dtype.element_ty), mask=column < N)
