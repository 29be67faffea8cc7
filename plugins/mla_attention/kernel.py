"""Triton: latent attention in its absorbed form, split over the sequence, and the parts put together.

A program of the first kernel sees some rows (a query token's heads, then the next token's) and one part of a slot's
sequence, with the running maximum and sum of a softmax. Its result is normalised by its own sum, whose base-2 logarithm
goes along: so parts weigh 2^(lse - max) when the second kernel adds them. (The scheme of flash decoding; for latents,
DeepSeek's FlashMLA.)
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mla_split(
    q_ptr,
    q_pe_ptr,
    cache_ptr,
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
    PARTS: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """q [B, S, H, DC], q_pe [B, S, H, DR] over cache [B, T, DC+DR] -> partial [B, S, H, PARTS, DC], lse [.., PARTS].

    Query s of slot b sees the rows up to start[b] + s. SCALE includes log2(e). Grid: (ceil(S * H / ROWS), PARTS, B).
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part, slot = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    seen = row < queries * H
    held = tl.load(start_ptr + slot).to(tl.int32)
    last = held + row // H
    length = tl.minimum(held + queries, capacity)
    share = tl.cdiv(tl.cdiv(length, PARTS), TOKENS) * TOKENS
    first = part * share
    end = tl.minimum(first + share, length)

    latent, rope = tl.arange(0, DC_PADDED), tl.arange(0, DR_PADDED)
    place = slot * queries * H + row
    q = tl.load(q_ptr + place[:, None] * DC + latent[None, :], mask=seen[:, None] & (latent < DC)[None, :], other=0.0)
    q_pe = tl.load(q_pe_ptr + place[:, None] * DR + rope[None, :], mask=seen[:, None] & (rope < DR)[None, :], other=0.0)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, DC_PADDED), tl.float32)
    for begin in range(first, end, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        inside = (token < end)[:, None]
        line = cache_ptr + (slot * capacity + token)[:, None] * (DC + DR)
        kv = tl.load(line + latent[None, :], mask=inside & (latent < DC)[None, :], other=0.0).to(dtype)
        k_pe = tl.load(line + DC + rope[None, :], mask=inside & (rope < DR)[None, :], other=0.0).to(dtype)
        scores = tl.dot(q, tl.trans(kv), input_precision="ieee")
        scores = tl.dot(q_pe, tl.trans(k_pe), scores, input_precision="ieee") * SCALE
        visible = (token[None, :] <= last[:, None]) & (token < end)[None, :]
        scores = tl.where(visible, scores, float("-inf"))
        top = tl.maximum(best, tl.max(scores, 1))
        # A row that has seen nothing yet has no maximum to subtract.
        base = tl.where(top == float("-inf"), 0.0, top)
        shares = tl.exp2(scores - base[:, None])
        kept = tl.exp2(best - base)
        total = total * kept + tl.sum(shares, 1)
        mixed = tl.dot(shares.to(dtype), kv, mixed * kept[:, None], input_precision="ieee")
        best = top
    empty = total == 0.0
    lse = tl.where(empty, float("-inf"), best + tl.log2(tl.where(empty, 1.0, total)))
    mixed = mixed / tl.where(empty, 1.0, total)[:, None]
    out = place * PARTS + part
    tl.store(partial_ptr + out[:, None] * DC + latent[None, :], mixed, mask=seen[:, None] & (latent < DC)[None, :])
    tl.store(lse_ptr + out, lse, mask=seen)


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
