"""Triton: new tokens' rows into the latent cache, in its precision; also straight from their projection."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def latent_append(
    _cache_ptr,
    _side_ptr,
    kv_c_ptr,
    k_pe_ptr,
    norm_ptr,
    cos_ptr,
    sin_ptr,
    start_ptr,
    count,
    capacity,
    updated_ptr,
    updated_side_ptr,
    DC: tl.constexpr,
    DR: tl.constexpr,
    GROUPS: tl.constexpr,
    LARGEST: tl.constexpr,
    EPS: tl.constexpr,
    GROUPS_PADDED: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    PAIRS_PADDED: tl.constexpr,
):
    """updated[b, start[b] + s] = (kv_c[b, s], k_pe[b, s]), clamped to +-LARGEST and rounded to the cache's type.

    With `norm`, kv_c [B, S, DC+DR] is what the projection gave: its first DC numbers are normalised by their root mean
    square, with weights `norm` [DC], and its last DR rotated in pairs by `cos` and `sin` [B, S, DR / 2]. With `side`
    the cache is e4m3 [.., DC] in GROUPS with a scale each; `side` [.., DR+GROUPS] takes k_pe and the scales.
    Grid: (count, slots). `updated` is the cache itself. A row beyond its capacity is not written.
    """
    new, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    source = slot * count + new
    position = tl.load(start_ptr + slot).to(tl.int64) + new
    target = slot * capacity + position
    inside = position < capacity
    WIDTH: tl.constexpr = DC // GROUPS
    group, member = tl.arange(0, GROUPS_PADDED)[:, None], tl.arange(0, GROUP_PADDED)[None, :]
    column = group * WIDTH + member
    real = (group < GROUPS) & (member < WIDTH)
    stride: tl.constexpr = DC if norm_ptr is None else DC + DR
    latent = tl.load(kv_c_ptr + source * stride + column, mask=real, other=0.0).to(tl.float32)
    pair = tl.arange(0, PAIRS_PADDED)
    paired = pair < DR // 2
    rope_ptr = k_pe_ptr + source * DR if norm_ptr is None else kv_c_ptr + source * stride + DC
    even = tl.load(rope_ptr + 2 * pair, mask=paired, other=0.0).to(tl.float32)
    odd = tl.load(rope_ptr + 2 * pair + 1, mask=paired, other=0.0).to(tl.float32)
    if norm_ptr is not None:
        mean = tl.sum(tl.sum(latent * latent, 1), 0) / DC
        latent = latent * tl.rsqrt(mean + EPS) * tl.load(norm_ptr + column, mask=real, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + source * (DR // 2) + pair, mask=paired, other=0.0)
        sin = tl.load(sin_ptr + source * (DR // 2) + pair, mask=paired, other=0.0)
        even, odd = even * cos - odd * sin, odd * cos + even * sin
    if updated_side_ptr is None:
        row = updated_ptr + target * (DC + DR)
        _store(row + column, latent, real & inside, LARGEST)
        rotary = row + DC
    else:
        row = updated_side_ptr + target * (DR + GROUPS)
        numbers, scale = _eighths(latent)
        tl.store(updated_ptr + target * DC + column, numbers, mask=real & inside)
        each = tl.arange(0, GROUPS_PADDED)
        tl.store(row + DR + each, scale, mask=(each < GROUPS) & inside)
        rotary = row
    _store(rotary + 2 * pair, even, paired & inside, LARGEST)
    _store(rotary + 2 * pair + 1, odd, paired & inside, LARGEST)


@triton.jit
def _store(place, values, mask, LARGEST: tl.constexpr):
    """Values in the type of the place, at most its largest number."""
    if LARGEST is not None:
        values = tl.minimum(tl.maximum(values, -LARGEST), LARGEST)
    tl.store(place, values.to(place.dtype.element_ty), mask=mask)


@triton.jit
def _eighths(latent):
    """Groups [GROUPS, WIDTH] as e4m3 and their scales in bfloat16, as `latent_append_fp8.rounded_rows` makes them."""
    amax = tl.maximum(tl.max(tl.abs(latent), 1), 1e-30)
    scale = tl.div_rn(amax, 448.0).to(tl.bfloat16)
    fractions = tl.div_rn(latent, scale.to(tl.float32)[:, None] + tl.zeros_like(latent))
    return tl.minimum(tl.maximum(fractions, -448.0), 448.0).to(tl.float8e4nv), scale
