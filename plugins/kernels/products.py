"""Triton: the matrix products that linears and experts share, each a loop over K with sums in float32.

One loop multiplies the rows of x by one bank or, for an expert's gate and up, by two, so that x is read once. What a
step needs besides the tiles, its scales and zero points, is loaded a step ahead: Triton's pipeline holds operands of
products only, and the wait for a scale would else stand between a product and its sum.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from dsv3export.plugins.kernels.numbers import e4m3_value, int4_parts, int_value, rounded, zero_points


class Bank(NamedTuple):
    """A stored matrix [N, K] and what turns its numbers into weights; None where it has no such thing."""

    numbers: tl.tensor
    scale: tl.tensor
    zero: tl.tensor


@triton.jit
def place(program, rows, ROWS: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows [ROWS] and the first column of a program's part of the output.

    Programs that run at a time cover about a square of the output, so that the rows and columns that they share are
    read from the cache.
    """
    GROUP: tl.constexpr = 8
    down = tl.cdiv(rows, ROWS)
    across: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    top = program // (GROUP * across) * GROUP
    high = tl.minimum(down - top, GROUP)
    inside = program % (GROUP * across)
    row = (top + inside % high) * ROWS + tl.arange(0, ROWS)
    return row.to(tl.int64), inside // high * COLUMNS


@triton.jit
def tile(ptr, line, inside, first, K: tl.constexpr, INNER: tl.constexpr):
    """Elements first .. first + INNER of lines of a matrix [.., K]; zeros for lines not `inside`, and beyond K."""
    k = first + tl.arange(0, INNER)
    mask = inside[:, None]
    if K % INNER:
        mask = mask & (k < K)[None, :]
    return tl.load(ptr + line[:, None] * K + k[None, :], mask=mask, other=0.0)


@triton.jit
def rows_by_columns(a, w, SWAPPED: tl.constexpr):
    """a [ROWS, K] times w [COLUMNS, K]^T.

    SWAPPED lays the columns along the long side of the matrix unit, 64 on Hopper, which a few rows do not fill.
    """
    if SWAPPED:
        product = tl.trans(tl.dot(w, tl.trans(a), input_precision="ieee"))
    else:
        product = tl.dot(a, tl.trans(w), input_precision="ieee")
    return product


@triton.jit
def part_of(steps: tl.constexpr, part, PARTS: tl.constexpr):
    """Which of the steps along K a part of PARTS takes: first, end."""
    share: tl.constexpr = (steps + PARTS - 1) // PARTS
    first = part * share
    return first, tl.minimum(first + share, steps)


@triton.jit
def fp8_product(a_ptr, a_scale_ptr, row, seen, bank, other, start, part, form: tl.constexpr):
    """Rows `row` [ROWS] of a * a_scale times columns start .. start + COLUMNS of the banks^T: float32, and of `other`.

    a: e4m3 [.., K], a_scale: float32 [.., ceil(K / 128)]; a bank: e4m3 [N, K] with float32 [ceil(N / 128),
    ceil(K / 128)]. The sum of each 128 products is scaled and added in float32: the matrix units' own sums of FP8
    products are not exact (DeepSeek-V3 paper, section 3.3.2). Rows that are not `seen` give zeros. COLUMNS divides 128,
    so that a step has one scale of a bank. form: see `weight_product`.
    """
    N: tl.constexpr = form[0]
    K: tl.constexpr = form[1]
    SWAPPED: tl.constexpr = form[4]
    groups: tl.constexpr = (K + 127) // 128
    total = tl.zeros((form[2], form[3]), tl.float32)
    second = total
    column = start + tl.arange(0, form[3])
    inside = column < N
    first, end = part_of(groups, part, form[5])
    a_scales = a_scale_ptr + row * groups
    scales = bank.scale + start // 128 * groups
    a_scale = tl.load(a_scales + first, mask=seen & (first < end), other=0.0)
    scale = tl.load(scales + first, mask=first < end, other=0.0)
    if other is not None:
        other_scales = other.scale + start // 128 * groups
        other_scale = tl.load(other_scales + first, mask=first < end, other=0.0)
    for group in range(first, end):
        more = group + 1 < end
        a = tile(a_ptr, row, seen, group * 128, K, 128)
        w = tile(bank.numbers, column, inside, group * 128, K, 128)
        total += rows_by_columns(a, w, SWAPPED) * (a_scale * scale)[:, None]
        if other is not None:
            w = tile(other.numbers, column, inside, group * 128, K, 128)
            second += rows_by_columns(a, w, SWAPPED) * (a_scale * other_scale)[:, None]
            other_scale = tl.load(other_scales + group + 1, mask=more, other=0.0)
        a_scale = tl.load(a_scales + group + 1, mask=seen & more, other=0.0)
        scale = tl.load(scales + group + 1, mask=more, other=0.0)
    return total, second


@triton.jit
def weight_product(x_ptr, row, seen, bank, other, start, part, form: tl.constexpr):
    """Rows `row` [ROWS] of x [.., K] times columns start .. start + COLUMNS of the banks^T: float32, and of `other`.

    form: (N, K, ROWS, COLUMNS, SWAPPED, PARTS, FORMAT, GROUP, ROUND, INNER). FORMAT is "plain" (floats [N, K]), "fp8"
    (e4m3 [N, K], a scale for each 128 x 128; COLUMNS divides 128), "int8" or "int4" (packed, a scale and maybe a zero
    point for each GROUP of a row, `linear_int.dequantise`). A stored number is exact in x's type; the products of a
    step of INNER, which divides GROUP, are summed in float32 and then scaled. With ROUND the rows of x are rounded to
    int8 in the same groups, which needs INNER to be GROUP.
    """
    K: tl.constexpr = form[1]
    INNER: tl.constexpr = form[9]
    total = tl.zeros((form[2], form[3]), tl.float32)
    second = total
    column = start + tl.arange(0, form[3])
    first, end = part_of((K + INNER - 1) // INNER, part, form[5])
    scale, zero = step_numbers(bank, start, column, first, end, form)
    if other is not None:
        other_scale, other_zero = step_numbers(other, start, column, first, end, form)
    for step in range(first, end):
        x = tile(x_ptr, row, seen, step * INNER, K, INNER)
        if form[8]:
            x, size = rounded(x)
        else:
            size = None
        total = add_product(total, x, size, bank, scale, zero, column, step, form)
        scale, zero = step_numbers(bank, start, column, step + 1, end, form)
        if other is not None:
            second = add_product(second, x, size, other, other_scale, other_zero, column, step, form)
            other_scale, other_zero = step_numbers(other, start, column, step + 1, end, form)
    return total, second


@triton.jit
def step_numbers(bank, start, column, step, end, form: tl.constexpr):
    """The scales and the zero points of one step: of a tile or of each column, or 0 where the format has none."""
    FORMAT: tl.constexpr = form[6]
    GROUP: tl.constexpr = form[7]
    groups: tl.constexpr = (form[1] + GROUP - 1) // GROUP
    group = step * form[9] // GROUP
    inside = (column < form[0]) & (step < end)
    zero = 0
    if FORMAT == "plain":
        scale = 0.0
    elif FORMAT == "fp8":
        scale = tl.load(bank.scale + start // 128 * groups + group, mask=step < end, other=0.0)
    else:
        scale = tl.load(bank.scale + column * groups + group, mask=inside, other=0.0)
        if bank.zero is not None:
            zero = zero_points(bank.zero, column, group, inside, groups, FORMAT)
    return scale, zero


@triton.jit
def add_product(total, x, size, bank, scale, zero, column, step, form: tl.constexpr):
    """total + x [ROWS, INNER] times one step of a bank; `size` are the units of rounded rows."""
    N: tl.constexpr = form[0]
    K: tl.constexpr = form[1]
    SWAPPED: tl.constexpr = form[4]
    FORMAT: tl.constexpr = form[6]
    INNER: tl.constexpr = form[9]
    inside = column < N
    if FORMAT == "plain" or FORMAT == "fp8":
        stored = tile(bank.numbers, column, inside, step * INNER, K, INNER)
        if FORMAT == "fp8":
            product = rows_by_columns(x, e4m3_value(stored, x.dtype), SWAPPED) * scale
        else:
            product = rows_by_columns(x, stored.to(x.dtype), SWAPPED)
    else:
        padded: tl.constexpr = (K + form[7] - 1) // form[7] * form[7]
        ZERO: tl.constexpr = bank.zero is not None
        if FORMAT == "int4" and INNER >= 64:
            x_parts, w_parts = int4_parts(x, bank.numbers, zero, column, inside, step, padded, INNER, ZERO)
            product = rows_by_columns(x_parts[0], w_parts[0], SWAPPED)
            for each in tl.static_range(1, 4):
                product += rows_by_columns(x_parts[each], w_parts[each], SWAPPED)
        else:
            value = int_value(bank.numbers, zero, column, inside, step, padded, FORMAT, INNER, ZERO, x.dtype)
            product = rows_by_columns(x, value, SWAPPED)
        product = product * scale[None, :]
    if size is not None:
        product = product * size[:, None]
    return total + product


@triton.jit
def store_part(y_ptr, row, seen, rows, start, part, y, N: tl.constexpr):
    """Writes a part of the output: y [ROWS, COLUMNS] into [rows, N], or into [parts, rows, N]."""
    column = start + tl.arange(0, y.shape[1])
    inside = seen[:, None] & (column < N)[None, :]
    lines = y_ptr + (part.to(tl.int64) * rows + row)[:, None] * N
    tl.store(lines + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
