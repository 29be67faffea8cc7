"""Triton: stored numbers in a few bits as numbers that matrix units multiply.

An integer of four bits, put into the low bits of a 16-bit float that is 128 (bfloat16) or 1024 (float16), adds to it
exactly; what is subtracted after that is the 128 or 1024 and the zero point at once. So a word of eight numbers takes a
shift, a mask and a subtraction for each two of them, and no conversion.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def e4m3_value(stored, dtype: tl.constexpr):
    """e4m3 numbers, or their bytes on devices that cannot convert them, in the type of activations."""
    if stored.dtype == tl.uint8:
        bits = stored.to(tl.int32)
        # Sign and the other seven bits where float32 has them; its exponents count from 127, not from 7.
        placed = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        value = (placed.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(dtype)
    else:
        value = stored.to(dtype)
    return value


@triton.jit
def rounded(x):
    """Rows of x in whole numbers up to 127, in their type, and the units: float32 [ROWS]."""
    exact = x.to(tl.float32)
    unit = tl.div_rn(tl.max(tl.abs(exact), axis=1), 127.0)
    quotient = tl.div_rn(exact, tl.where(unit > 0.0, unit, 1.0)[:, None] + tl.zeros_like(exact))
    # Adding 1.5 * 2^23 leaves no fraction bits: float32 itself rounds to the nearest even integer.
    return ((quotient + 12582912.0) - 12582912.0).to(x.dtype), unit


@triton.jit
def zero_points(zero_ptr, column, group, inside, GROUPS: tl.constexpr, FORMAT: tl.constexpr):
    """The zero points of columns in a group: int32."""
    if FORMAT == "int8":
        zero = tl.load(zero_ptr + column * GROUPS + group, mask=inside, other=0).to(tl.int32)
    else:
        pair = tl.load(zero_ptr + column * ((GROUPS + 1) // 2) + group // 2, mask=inside, other=0)
        zero = (pair.to(tl.int32) >> (4 * (group % 2))) & 0xF
    return zero


@triton.jit
def int_value(
    ptr, zero, column, inside, step,
    PADDED: tl.constexpr, FORMAT: tl.constexpr, INNER: tl.constexpr, ZERO: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Numbers minus zero points [COLUMNS, INNER], in their order; without ZERO, minus half of their range.

    PADDED is K up to the last group's end, which is stored too.
    """
    HALF: tl.constexpr = 128 if FORMAT == "int8" else 8
    if FORMAT == "int8":
        k = step * INNER + tl.arange(0, INNER)
        number = tl.load(ptr + column[:, None] * PADDED + k[None, :], mask=inside[:, None], other=0)
        # 128 less, as a signed byte: devices convert those at once.
        value = (number ^ 0x80).to(tl.int8, bitcast=True).to(dtype)
    else:
        k = step * (INNER // 2) + tl.arange(0, INNER // 2)
        pair = tl.load(ptr + column[:, None] * (PADDED // 2) + k[None, :], mask=inside[:, None], other=0).to(tl.int32)
        value = (tl.interleave(pair & 0xF, pair >> 4) - HALF).to(dtype)
    if ZERO:
        value -= (zero - HALF).to(dtype)[:, None]
    return value


@triton.jit
def int4_parts(
    x, ptr, zero, column, inside, step,
    PADDED: tl.constexpr, INNER: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """A step of x [ROWS, INNER] and of numbers minus zero points [COLUMNS, INNER], each in four parts along K.

    Part j has elements j and j + 4 of each eight, which a word has in the low bits of its halves after a shift of 4 j.
    """
    WORDS: tl.constexpr = INNER // 8
    k = step * WORDS + tl.arange(0, WORDS)
    words = ptr.to(tl.pointer_type(tl.uint32)) + column[:, None] * (PADDED // 8)
    word = tl.load(words + k[None, :], mask=inside[:, None], other=0)
    even, odd = tl.split(tl.reshape(x, (x.shape[0], WORDS, 2, 2, 2)))
    x_0, x_2 = tl.split(even)
    x_1, x_3 = tl.split(odd)
    narrow: tl.constexpr = tl.float16 if x.dtype == tl.float16 else tl.bfloat16
    one: tl.constexpr = 1024 if x.dtype == tl.float16 else 128
    offset = (zero + one).to(narrow)[:, None] if ZERO else tl.full((1, 1), one + 8, tl.float32).to(narrow)
    return (
        (_flat(x_0), _flat(x_1), _flat(x_2), _flat(x_3)),
        (
            (_halves(word, narrow) - offset).to(x.dtype),
            (_halves(word >> 4, narrow) - offset).to(x.dtype),
            (_halves(word >> 8, narrow) - offset).to(x.dtype),
            (_halves(word >> 12, narrow) - offset).to(x.dtype),
        ),
    )


@triton.jit
def _flat(x):
    return tl.reshape(x, (x.shape[0], x.shape[1] * 2))


@triton.jit
def _halves(word, narrow: tl.constexpr):
    """The low four bits of each half of words [.., n], added to 128 or 1024: [.., 2 n]."""
    bits: tl.constexpr = 0x64006400 if narrow == tl.float16 else 0x43004300
    placed = (word & 0x000F000F) | bits
    low, high = (placed & 0xFFFF).to(tl.uint16), (placed >> 16).to(tl.uint16)
    return _flat(tl.join(low.to(narrow, bitcast=True), high.to(narrow, bitcast=True)))
