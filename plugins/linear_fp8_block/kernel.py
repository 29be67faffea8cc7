"""Triton: activations to e4m3 in groups of 1 x 128, and products of FP8 matrices with scales for blocks."""

from __future__ import annotations

import triton
import triton.language as tl

from dsv3export.plugins.kernels.products import Bank, fp8_product, place, store_part


@triton.jit
def quantise_activations(x_ptr, rows, values_ptr, scale_ptr, K: tl.constexpr, ROWS: tl.constexpr):
    """x [rows, K] -> e4m3 [rows, K] and amax / 448 of each 128 neighbours [rows, ceil(K / 128)].

    Grid: (groups, ceil(rows / ROWS)).
    """
    row, places, inside = _group(rows, K, ROWS)
    x = tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)
    values, scale = _rounded(x)
    tl.store(values_ptr + places, values, mask=inside)
    tl.store(scale_ptr + row * tl.cdiv(K, 128) + tl.program_id(0), scale, mask=row < rows)


@triton.jit
def swiglu_quantise(gate_ptr, up_ptr, rows, values_ptr, scale_ptr, K: tl.constexpr, ROWS: tl.constexpr):
    """silu(gate) * up, both [rows, K], as `quantise_activations` rounds it. Grid: the same."""
    row, places, inside = _group(rows, K, ROWS)
    gate = tl.load(gate_ptr + places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + places, mask=inside, other=0.0).to(tl.float32)
    values, scale = _rounded(gate / (1.0 + tl.exp(-gate)) * up)
    tl.store(values_ptr + places, values, mask=inside)
    tl.store(scale_ptr + row * tl.cdiv(K, 128) + tl.program_id(0), scale, mask=row < rows)


@triton.jit
def norm_quantise(
    x_ptr, norm_ptr, values_ptr, scale_ptr, K: tl.constexpr, EPS: tl.constexpr, GROUPS_PADDED: tl.constexpr
):
    """x [rows, K], normalised by its root mean square with weights `norm` [K], as `quantise_activations` rounds it.

    Grid: (rows): a program holds a row.
    """
    row, group = tl.program_id(0).to(tl.int64), tl.arange(0, GROUPS_PADDED)
    column = group[:, None] * 128 + tl.arange(0, 128)[None, :]
    inside = column < K
    x = tl.load(x_ptr + row * K + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(x * x, 1), 0) / K
    norm = tl.load(norm_ptr + column, mask=inside, other=0.0).to(tl.float32)
    values, scale = _rounded(x * tl.rsqrt(mean + EPS) * norm)
    groups: tl.constexpr = (K + 127) // 128
    tl.store(values_ptr + row * K + column, values, mask=inside)
    tl.store(scale_ptr + row * groups + group, scale, mask=group < groups)


@triton.jit
def _group(rows, K: tl.constexpr, ROWS: tl.constexpr):
    """A program's rows, the places of its 128 neighbours in each, and which of them there are."""
    column = tl.program_id(0) * 128 + tl.arange(0, 128)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = (row < rows)[:, None]
    if K % 128:
        inside = inside & (column < K)[None, :]
    return row, row[:, None] * K + column[None, :], inside


@triton.jit
def _rounded(x):
    """Groups [n, 128] as e4m3, and their scales [n]."""
    # Divisions are IEEE's, so that a number on the edge between two rounds as in the definition.
    scale = tl.div_rn(tl.max(tl.abs(x), axis=1), 448.0)
    scale = tl.where(scale < 1.17549435e-38, 1.0, scale)
    return tl.div_rn(x, scale[:, None] + tl.zeros_like(x)).to(tl.float8e4nv), scale


@triton.jit
def fp8_block_gemm(
    a_ptr,
    a_scale_ptr,
    weight_ptr,
    scale_ptr,
    rows,
    y_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SWAPPED: tl.constexpr,
    PARTS: tl.constexpr,
):
    """y [rows, N] = (a [rows, K] * a_scale) @ (weight [N, K] * scale)^T, both e4m3; `fp8_product` says how.

    Of several PARTS each sums a share of K: y [PARTS, rows, N]. Grid: (ceil(rows / ROWS) * ceil(N / COLUMNS), PARTS).
    """
    row, start = place(tl.program_id(0), rows, ROWS, N, COLUMNS)
    seen, part = row < rows, tl.program_id(1)
    form: tl.constexpr = (N, K, ROWS, COLUMNS, SWAPPED, PARTS)
    bank = Bank(weight_ptr, scale_ptr, None)
    y, _ = fp8_product(a_ptr, a_scale_ptr, row, seen, bank, None, start, part, form)
    store_part(y_ptr, row, seen, rows, start, part, y, N)
