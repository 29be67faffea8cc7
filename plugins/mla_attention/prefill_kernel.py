"""Triton: attention of a chunk of new tokens over keys and values that were projected up from the latents.

Each program takes some queries of one head. Keys that all of them see come first, without masks; then those around the
diagonal. (The scheme of FlashAttention-2.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from dsv3export.plugins.mla_attention.kernel import columns, softened


@triton.jit
def mla_prefill(
    q_ptr,
    q_pe_ptr,
    kv_ptr,
    cache_ptr,
    start_ptr,
    queries,
    length,
    capacity,
    out_ptr,
    H: tl.constexpr,
    DN: tl.constexpr,
    DV: tl.constexpr,
    DC: tl.constexpr,
    DR: tl.constexpr,
    DN_PADDED: tl.constexpr,
    DV_PADDED: tl.constexpr,
    DR_PADDED: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """q [B, S, H, DN], q_pe [B, S, H, DR] over kv [B, L, H, DN+DV] and the cache's [B, T, DC:DC+DR] -> [B, S, H, DV].

    Query s of slot b sees the rows up to start[b] + s. SCALE includes log2(e). Grid: (ceil(S / ROWS), H, B), the last
    queries, which see most, first.
    """
    top = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    head, slot = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = top + tl.arange(0, ROWS)
    seen = row < queries
    held = tl.load(start_ptr + slot).to(tl.int32)
    line = (slot * queries + row) * H + head
    q = columns(q_ptr + line[:, None] * DN, seen, DN, DN_PADDED)
    q_pe = columns(q_pe_ptr + line[:, None] * DR, seen, DR, DR_PADDED)
    state = (
        tl.full((ROWS,), float("-inf"), tl.float32),
        tl.zeros((ROWS,), tl.float32),
        tl.zeros((ROWS, DV_PADDED), tl.float32),
    )
    # Up to `common` every query sees every key.
    common = (held + top + 1) // TOKENS * TOKENS
    end = tl.minimum(held + tl.minimum(top + ROWS, queries), length)
    kv = kv_ptr + (slot * length * H + head) * (DN + DV)
    k_pe = cache_ptr + slot * capacity * (DC + DR) + DC
    dims: tl.constexpr = (H, DN, DV, DC, DR, DN_PADDED, DV_PADDED, DR_PADDED, SCALE, TOKENS)
    state = _over(state, q, q_pe, kv, k_pe, 0, common, held + row, end, False, dims)
    state = _over(state, q, q_pe, kv, k_pe, common, end, held + row, end, True, dims)
    value = tl.arange(0, DV_PADDED)
    inside = seen[:, None] & (value < DV)[None, :]
    # Rows beyond the queries may have seen nothing.
    out = state[2] / tl.where(state[1] == 0.0, 1.0, state[1])[:, None]
    tl.store(out_ptr + line[:, None] * DV + value[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _over(state, q, q_pe, kv, k_pe, first, end, last, length, MASKED: tl.constexpr, dims: tl.constexpr):
    """The softmax's maximum, sum and weighted values after the keys first .. end; row i sees them up to last[i]."""
    TOKENS: tl.constexpr = dims[9]
    best, total, mixed = state
    for begin in range(first, end, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        inside = token < length
        line = kv + token.to(tl.int64)[:, None] * (dims[0] * (dims[1] + dims[2]))
        keys = columns(line, inside, dims[1], dims[5])
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
        rotary = columns(k_pe + token[:, None] * (dims[3] + dims[4]), inside, dims[4], dims[7]).to(q.dtype)
        scores = tl.dot(q_pe, tl.trans(rotary), scores, input_precision="ieee") * dims[8]
        if MASKED:
            scores = tl.where((token[None, :] <= last[:, None]) & inside[None, :], scores, float("-inf"))
        shares, kept, best, total = softened(scores, best, total)
        values = columns(line + dims[1], inside, dims[2], dims[6])
        mixed = tl.dot(shares.to(q.dtype), values, mixed * kept[:, None], input_precision="ieee")
    return best, total, mixed
