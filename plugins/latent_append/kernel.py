"""Triton: new tokens' rows into the latent cache."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def latent_append(
    _cache_ptr,
    kv_c_ptr,
    k_pe_ptr,
    start_ptr,
    count,
    capacity,
    updated_ptr,
    DC: tl.constexpr,
    DR: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """updated[b, start[b] + s] = (kv_c[b, s], k_pe[b, s]), clamped to +-LARGEST and rounded to the cache's type.

    Grid: (count, slots): the new tokens of a slot, and the slots. `updated` is the cache itself. A row beyond its
    capacity is not written.
    """
    new, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    source = slot * count + new
    position = tl.load(start_ptr + slot).to(tl.int64) + new
    target = updated_ptr + (slot * capacity + position) * (DC + DR)
    column = tl.arange(0, BLOCK)
    latent = tl.load(kv_c_ptr + source * DC + column, mask=column < DC, other=0.0).to(tl.float32)
    rope = tl.load(k_pe_ptr + source * DR + (column - DC), mask=(column >= DC) & (column < DC + DR), other=0.0)
    row = tl.where(column < DC, latent, rope.to(tl.float32))
    if LARGEST is not None:
        row = tl.minimum(tl.maximum(row, -LARGEST), LARGEST)
    if position < capacity:
        tl.store(target + column, row.to(updated_ptr.dtype.element_ty), mask=column < DC + DR)
