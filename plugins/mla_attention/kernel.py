"""Triton: latent attention in its absorbed form, split over the sequence, and the parts put together.

A program of the first kernel sees some rows (a query token's heads, then the next token's) and one part of a slot's
sequence, with the running maximum and sum of a softmax. Its result is normalised by its own sum, whose base-2 logarithm
goes along: so parts weigh 2^(lse - max) when the second kernel adds them. (The scheme of flash decoding; for latents,
DeepSeek's FlashMLA.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from dsv3export.plugins.kernels.numbers import e4m3_value


@triton.jit
def mla_split(
    q_ptr,
    q_pe_ptr,
    cache_ptr,
    side_ptr,
    start_ptr,
    queries,
    capacity,
    partial_ptr,
    lse_ptr,
    H: tl.constexpr,
    DC: tl.constexpr,
    DR: tl.constexpr,
    DC_PADDED: tl.constexpr,
    DR_PADDED: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTS: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SWAPPED: tl.constexpr,
):
    """q [B, S, H, DC], q_pe [B, S, H, DR] over cache [B, T, DC+DR] -> partial [B, S, H, PARTS, DC], lse [.., PARTS].

    Query s of slot b sees the rows up to start[b] + s. SCALE includes log2(e). With `side` [B, T, DR+GROUPS] the cache
    is e4m3 [B, T, DC], `side` holds the rotary part and the scales. Grid: (ceil(S * H / ROWS), PARTS, B).
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part, slot = tl.program_id(1), tl.program_id(2).to(tl.int64)
    seen = row < queries * H
    held = tl.load(start_ptr + slot).to(tl.int32)
    length = tl.minimum(held + queries, capacity)
    share = tl.cdiv(tl.cdiv(length, PARTS), TOKENS) * TOKENS
    first = part * share
    end = tl.minimum(first + share, length)

    line = slot * queries * H + row
    q = columns(q_ptr + line[:, None] * DC, seen, DC, DC_PADDED)
    q_pe = columns(q_pe_ptr + line[:, None] * DR, seen, DR, DR_PADDED)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((DC_PADDED, ROWS) if SWAPPED else (ROWS, DC_PADDED), tl.float32)
    for begin in range(first, end, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        kv, k_pe = _cached(
            cache_ptr, side_ptr, slot * capacity + token, token < end, q.dtype, DC, DR, DC_PADDED, DR_PADDED, GROUPS
        )
        scores = _products(q, q_pe, kv, k_pe, SWAPPED) * SCALE
        visible = (token[None, :] <= (held + row // H)[:, None]) & (token < end)[None, :]
        shares, kept, best, total = softened(tl.where(visible, scores, float("-inf")), best, total)
        mixed = _mixed(shares.to(q.dtype), kv, mixed, kept, SWAPPED)
    empty = total == 0.0
    lse = tl.where(empty, float("-inf"), best + tl.log2(tl.where(empty, 1.0, total)))
    out = line * PARTS + part
    mixed = tl.trans(mixed) if SWAPPED else mixed
    latent = tl.arange(0, DC_PADDED)
    place = partial_ptr + out[:, None] * DC + latent[None, :]
    mixed = (mixed / tl.where(empty, 1.0, total)[:, None]).to(partial_ptr.dtype.element_ty)
    tl.store(place, mixed, mask=seen[:, None] & (latent < DC)[None, :])
    tl.store(lse_ptr + out, lse, mask=seen)


@triton.jit
def columns(lines, inside, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The first WIDTH elements at `lines` [n, 1], filled up with zeros: [n, PADDED]."""
    column = tl.arange(0, PADDED)
    mask = inside[:, None]
    if WIDTH < PADDED:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(lines + column[None, :], mask=mask, other=0.0)


@triton.jit
def softened(scores, best, total):
    """One step of a softmax along a row: its weights, the factor of what was summed before, new maximum and sum."""
    top = tl.maximum(best, tl.max(scores, 1))
    # A row that has seen nothing yet has no maximum to subtract.
    base = tl.where(top == float("-inf"), 0.0, top)
    shares = tl.exp2(scores - base[:, None])
    kept = tl.exp2(best - base)
    return shares, kept, top, total * kept + tl.sum(shares, 1)


@triton.jit
def _cached(
    cache_ptr, side_ptr, line, inside, dtype: tl.constexpr,
    DC: tl.constexpr, DR: tl.constexpr, DC_PADDED: tl.constexpr, DR_PADDED: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Latents [TOKENS, DC_PADDED] and rotary parts [TOKENS, DR_PADDED] of the cache's lines."""
    if side_ptr is None:
        lines = cache_ptr + line[:, None] * (DC + DR)
        kv, k_pe = columns(lines, inside, DC, DC_PADDED), columns(lines + DC, inside, DR, DR_PADDED)
    else:
        lines = side_ptr + line[:, None] * (DR + GROUPS)
        k_pe = columns(lines, inside, DR, DR_PADDED)
        scale = columns(lines + DR, inside, GROUPS, GROUPS).to(tl.float32)
        numbers = columns(cache_ptr + line[:, None] * DC, inside, DC, DC)
        grouped = tl.reshape(e4m3_value(numbers, tl.float32), (line.shape[0], GROUPS, DC // GROUPS))
        kv = tl.reshape(grouped * scale[:, :, None], (line.shape[0], DC))
    return kv.to(dtype), k_pe.to(dtype)


@triton.jit
def _products(q, q_pe, kv, k_pe, SWAPPED: tl.constexpr):
    """Scores [ROWS, TOKENS]; SWAPPED lays the tokens along the matrix unit's long side."""
    if SWAPPED:
        scores = tl.dot(kv, tl.trans(q), input_precision="ieee")
        scores = tl.trans(tl.dot(k_pe, tl.trans(q_pe), scores, input_precision="ieee"))
    else:
        scores = tl.dot(q, tl.trans(kv), input_precision="ieee")
        scores = tl.dot(q_pe, tl.trans(k_pe), scores, input_precision="ieee")
    return scores


@triton.jit
def _mixed(shares, kv, mixed, kept, SWAPPED: tl.constexpr):
    """mixed * kept + shares @ kv; if SWAPPED, all of it transposed."""
    if SWAPPED:
        mixed = tl.dot(tl.trans(kv), tl.trans(shares), mixed * kept[None, :], input_precision="ieee")
    else:
        mixed = tl.dot(shares, kv, mixed * kept[:, None], input_precision="ieee")
    return mixed


@triton.jit
def mla_combine(
    partial_ptr,
    lse_ptr,
    mixed_ptr,
    DC: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """partial [.., PARTS, DC], lse [.., PARTS] -> mixed [.., DC]. Grid: (rows, ceil(DC / COLUMNS))."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.arange(0, PARTS_PADDED)
    lse = tl.load(lse_ptr + row * PARTS + part, mask=part < PARTS, other=float("-inf"))
    weight = tl.exp2(lse - tl.max(lse, 0))
    weight = weight / tl.sum(weight, 0)
    inside = (part < PARTS)[:, None] & (column < DC)[None, :]
    values = tl.load(partial_ptr + (row * PARTS + part)[:, None] * DC + column[None, :], mask=inside, other=0.0)
    mixed = tl.sum(values * weight[:, None], 0)
    tl.store(mixed_ptr + row * DC + column, mixed.to(mixed_ptr.dtype.element_ty), mask=column < DC)
