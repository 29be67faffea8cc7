"""Triton: the two matrix products that linears and experts share, each a loop over K with sums in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fp8_product(
    a_ptr,
    a_scale_ptr,
    row,
    seen,
    weight_ptr,
    scale_ptr,
    column,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rows `row` [ROWS] of a * a_scale, times columns `column` [COLUMNS] of (weight * scale)^T: float32.

    a: e4m3 [.., K], a_scale: float32 [.., ceil(K / 128)]; weight: e4m3 [N, K], scale: float32 [ceil(N / 128),
    ceil(K / 128)]. The sum of each 128 products is scaled and added in float32: the matrix units' own sums of FP8
    products are not exact (DeepSeek-V3 paper, section 3.3.2). Rows that are not `seen` give zeros.
    """
    groups: tl.constexpr = (K + 127) // 128
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    inner = tl.arange(0, 128)
    for group in range(groups):
        k = group * 128 + inner
        a_inside = seen[:, None]
        w_inside = (column < N)[:, None]
        if K % 128:
            a_inside = a_inside & (k < K)[None, :]
            w_inside = w_inside & (k < K)[None, :]
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], mask=a_inside, other=0.0)
        w = tl.load(weight_ptr + column[:, None] * K + k[None, :], mask=w_inside, other=0.0)
        a_scale = tl.load(a_scale_ptr + row * groups + group, mask=seen, other=0.0)
        scale = tl.load(scale_ptr + (column // 128) * groups + group, mask=column < N, other=0.0)
        total += tl.dot(a, tl.trans(w)) * a_scale[:, None] * scale[None, :]
    return total


@triton.jit
def e4m3_value(raw):
    """e4m3 numbers, or their bytes on devices that cannot convert them, as float32."""
    if raw.dtype == tl.uint8:
        bits = raw.to(tl.int32)
        # Sign and the other seven bits where float32 has them; its exponents count from 127, not from 7.
        placed = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        value = placed.to(tl.float32, bitcast=True) * 1.329227995784916e36
    else:
        value = raw.to(tl.float32)
    return value


@triton.jit
def int_value(weight_ptr, zero_ptr, column, k, first, N, GROUPS, GROUP, BITS: tl.constexpr, COLUMNS, INNER):
    """Numbers minus zero point, integers as float32 [COLUMNS, INNER]; `linear_int.dequantise` has the layout."""
    inside = (column < N)[:, None]
    group = first // GROUP
    if BITS == 8:
        place = column[:, None] * (GROUPS * GROUP) + k[None, :]
        number = tl.load(weight_ptr + place, mask=inside, other=0).to(tl.int32)
    else:
        place = column[:, None] * (GROUPS * GROUP // 2) + (first // 2 + tl.arange(0, INNER // 2))[None, :]
        pair = tl.load(weight_ptr + place, mask=inside, other=0).to(tl.int32)
        number = tl.interleave(pair & 0xF, pair >> 4)
    if zero_ptr is None:
        centred = number - (1 << (BITS - 1))
    elif BITS == 8:
        zero = tl.load(zero_ptr + column * GROUPS + group, mask=column < N, other=0).to(tl.int32)
        centred = number - zero[:, None]
    else:
        pair_of_zeros = tl.load(zero_ptr + column * ((GROUPS + 1) // 2) + group // 2, mask=column < N, other=0)
        zero = (pair_of_zeros.to(tl.int32) >> (4 * (group % 2))) & 0xF
        centred = number - zero[:, None]
    return centred.to(tl.float32)


@triton.jit
def weight_product(
    x_ptr,
    row,
    seen,
    weight_ptr,
    scale_ptr,
    zero_ptr,
    column,
    N: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    ROUND: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rows `row` [ROWS] of x [.., K], times columns `column` [COLUMNS] of the stored weight^T: float32.

    FORMAT is "plain" (floats [N, K]), "fp8" (e4m3 [N, K], a scale for each 128 x 128), "int8" or "int4" (packed, a
    scale and maybe a zero point for each GROUP of a row, `linear_int.dequantise`). A stored number is exact in x's
    type; the products of a group are summed in float32 and then scaled. With ROUND the rows of x are rounded to int8 in
    the same groups, which needs INNER to be GROUP. Otherwise INNER divides GROUP.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    groups: tl.constexpr = (K + GROUP - 1) // GROUP
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, K, INNER):
        k = first + tl.arange(0, INNER)
        x_inside = seen[:, None]
        w_inside = (column < N)[:, None]
        if K % INNER:
            x_inside = x_inside & (k < K)[None, :]
            w_inside = w_inside & (k < K)[None, :]
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=x_inside, other=0.0)
        if FORMAT == "plain":
            w = tl.load(weight_ptr + column[:, None] * K + k[None, :], mask=w_inside, other=0.0)
            total = tl.dot(x, tl.trans(w.to(tl.float32).to(dtype)), total, input_precision="ieee")
        else:
            if FORMAT == "fp8":
                raw = tl.load(weight_ptr + column[:, None] * K + k[None, :], mask=w_inside, other=0.0)
                value = e4m3_value(raw)
                scale_place = (column // 128) * groups + first // GROUP
            else:
                BITS: tl.constexpr = 8 if FORMAT == "int8" else 4
                value = int_value(weight_ptr, zero_ptr, column, k, first, N, groups, GROUP, BITS, COLUMNS, INNER)
                scale_place = column * groups + first // GROUP
            scale = tl.load(scale_ptr + scale_place, mask=column < N, other=0.0)
            if ROUND:
                exact = x.to(tl.float32)
                step = tl.div_rn(tl.max(tl.abs(exact), axis=1), 127.0)
                quotient = tl.div_rn(exact, tl.where(step > 0.0, step, 1.0)[:, None] + tl.zeros_like(exact))
                # Adding 1.5 * 2^23 leaves no fraction bits: float32 itself rounds to the nearest even integer.
                x = ((quotient + 12582912.0) - 12582912.0).to(dtype)
                products = tl.dot(x, tl.trans(value.to(dtype)), input_precision="ieee")
                total += products * step[:, None] * scale[None, :]
            else:
                products = tl.dot(x, tl.trans(value.to(dtype)), input_precision="ieee")
                total += products * scale[None, :]
    return total
