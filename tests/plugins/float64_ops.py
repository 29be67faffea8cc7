"""The dsv3 ops again, in float64 numpy with plain loops: written from the papers' formulas, sharing no code."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def linear(x: Array, weight: Array) -> Array:
    return np.einsum("...k,nk->...n", x.astype(np.float64), weight.astype(np.float64))


def latent_append(cache: Array, kv_c: Array, k_pe: Array, start: Array) -> Array:
    updated = cache.copy()
    width = kv_c.shape[2]
    for b, s in np.ndindex(*kv_c.shape[:2]):
        updated[b, start[b] + s, :width] = kv_c[b, s]
        updated[b, start[b] + s, width:] = k_pe[b, s]
    return updated


def on_grid(x: Array, digits: int, least: int, largest: float) -> Array:
    """The nearest number, ties to even, of `digits` binary digits; of fewer below 2^least; at most `largest`."""
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1], least)
    unit = np.exp2(exponent.astype(np.float64) - digits)
    nearest: Array = np.clip(np.round(x / unit) * unit, -largest, largest)
    return nearest


def bf16(x: Array) -> Array:
    return on_grid(x, 8, -125, 2.0**128 - 2.0**120)


def latent_append_half(cache: Array, kv_c: Array, k_pe: Array, start: Array, largest: float) -> tuple[Array, Array]:
    """`largest` tells which of the two types the cache has."""
    digits, least = (11, -13) if largest == 65504 else (8, -125)
    rows = (on_grid(new, digits, least, largest) for new in (kv_c, k_pe))
    updated = latent_append(cache.astype(np.float64), *rows, start)
    return updated, updated[:, : max(start) + kv_c.shape[1]]


def latent_append_fp8(cache: Array, side: Array, kv_c: Array, k_pe: Array, start: Array) -> tuple[Array, Array, Array]:
    """Group by group; the two divisions are float32's, as defined."""
    rope, width = k_pe.shape[2], kv_c.shape[2] // (side.shape[2] - k_pe.shape[2])
    numbers, scales = np.empty(kv_c.shape), np.empty((*kv_c.shape[:2], kv_c.shape[2] // width))
    for b, s, g in np.ndindex(scales.shape):
        group = kv_c[b, s, g * width : (g + 1) * width]
        scales[b, s, g] = bf16(max(np.abs(group).max(), np.float32(1e-30)) / np.float32(448))
        numbers[b, s, g * width : (g + 1) * width] = on_grid(group / np.float32(scales[b, s, g]), 4, -5, 448.0)
    updated = latent_append(cache.astype(np.float64), numbers, numbers[..., :0], start)
    updated_side = latent_append(side.astype(np.float64), bf16(k_pe), scales, start)
    longest = max(start) + kv_c.shape[1]
    seen, beside = updated[:, :longest], updated_side[:, :longest]
    columns = np.repeat(beside[..., rope:], width, axis=2)
    return updated, updated_side, np.concatenate([seen * columns, beside[..., :rope]], axis=2)


def mla_attention(q_nope: Array, q_pe: Array, cache: Array, kv_b: Array, start: Array, scale: float) -> Array:
    """One query and head at a time; a query sees only what the cache holds up to its own position."""
    batch, queries, heads, nope = q_nope.shape
    latent_rank = kv_b.shape[1]
    per_head = kv_b.astype(np.float64).reshape(heads, -1, latent_rank)
    out = np.empty((batch, queries, heads, per_head.shape[1] - nope))
    for b, s, h in np.ndindex(batch, queries, heads):
        seen = cache[b, : start[b] + s + 1].astype(np.float64)
        expanded = seen[:, :latent_rank] @ per_head[h].T
        keys = np.concatenate([expanded[:, :nope], seen[:, latent_rank:]], axis=1)
        query = np.concatenate([q_nope[b, s, h], q_pe[b, s, h]]).astype(np.float64)
        out[b, s, h] = softmax(keys @ query * scale) @ expanded[:, nope:]
    return out.reshape(batch, queries, -1)


def mla_attention_int(
    q_nope: Array,
    q_pe: Array,
    cache: Array,
    w_uk: Array,
    w_uk_scale: Array,
    w_uv: Array,
    w_uv_scale: Array,
    start: Array,
    scale: float,
) -> Array:
    """By kv_b, a head's rows of which are its keys' and then its values'."""
    keys, values = w_uk * w_uk_scale.astype(np.float64), w_uv * w_uv_scale.astype(np.float64)
    kv_b = np.concatenate([keys, np.swapaxes(values, 1, 2)], axis=1)
    return mla_attention(q_nope, q_pe, cache, kv_b.reshape(-1, kv_b.shape[2]), start, scale)


def moe_route(
    logits: Array,
    bias: Array,
    k: int,
    n_group: int,
    topk_group: int,
    group_top: int,
    scoring: str,
    normalize: int,
    scaling: float,
) -> tuple[Array, Array]:
    """Ranking by sorting (-score, index), token by token."""
    ids, weights = [], []
    for row in logits.astype(np.float64):
        scores = 1 / (1 + np.exp(-row)) if scoring == "sigmoid" else softmax(row)
        choice = scores + bias
        members = np.arange(len(row)).reshape(n_group, -1)
        group_score = [sum(sorted(choice[group], reverse=True)[:group_top]) for group in members]
        kept = ranked(group_score)[:topk_group]
        eligible = sorted(expert for group in kept for expert in members[group])
        chosen = [eligible[i] for i in ranked([choice[expert] for expert in eligible])[:k]]
        chosen_weights = scores[chosen] / (scores[chosen].sum() + 1e-20) if normalize else scores[chosen]
        ids.append(chosen)
        weights.append(chosen_weights * scaling)
    return np.array(ids, np.int64).reshape(-1, k), np.array(weights).reshape(-1, k)


def ranked(scores: Any) -> list[int]:
    """Indices by falling score; equal scores (up to float64's rounding) by index."""
    return sorted(range(len(scores)), key=lambda i: (-round(float(scores[i]), 12), i))


def moe_experts(x: Array, ids: Array, weights: Array, gate: Array, up: Array, down: Array) -> Array:
    out = np.zeros(x.shape)
    for t, j in np.ndindex(*ids.shape):
        token, expert = x[t].astype(np.float64), ids[t, j]
        gated = gate[expert].astype(np.float64) @ token
        hidden = gated / (1 + np.exp(-gated)) * (up[expert].astype(np.float64) @ token)
        out[t] += weights[t, j] * (down[expert].astype(np.float64) @ hidden)
    return out


def unpacked(packed: Array, bits: int) -> Array:
    """[..., n bytes] -> [..., n * 8 / bits]: the low half of a byte comes first."""
    if bits == 8:
        return packed.astype(np.int64)
    wide = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.int64)
    wide[..., 0::2], wide[..., 1::2] = packed % 16, packed // 16
    return wide


def dequantised(packed: Array, scale: Array, zero_point: Array | None, bits: int, group: int, inner: int) -> Array:
    """(q - zero point) * scale, column by column."""
    numbers = unpacked(packed, bits)
    zeros = np.full(scale.shape, 2 ** (bits - 1)) if zero_point is None else unpacked(zero_point, bits)
    columns = [(numbers[..., c] - zeros[..., c // group]) * scale[..., c // group].astype(float) for c in range(inner)]
    return np.stack(columns, axis=-1)


def linear_int(
    x: Array, qweight: Array, scale: Array, bits: int, group: int, activations: str, zero_point: Array | None = None
) -> Array:
    assert activations == "none"
    return linear(x, dequantised(qweight, scale, zero_point, bits, group, x.shape[-1]))


def moe_experts_int(
    x: Array, ids: Array, weights: Array, bits: int, group: int, activations: str, **banks: Any
) -> Array:
    """`banks`: gate, up and down with their scales and maybe zero points."""
    assert activations == "none"
    inner = {"gate": x.shape[1], "up": x.shape[1], "down": banks["gate"].shape[1]}
    gate, up, down = (
        dequantised(banks[name], banks[f"{name}_scale"], banks.get(f"{name}_zero"), bits, group, width)
        for name, width in inner.items()
    )
    return moe_experts(x, ids, weights, gate, up, down)


def fp8_value(numbers: Array, scale: Array) -> Array:
    """Each number times the scale of its block of 128 x 128."""
    rows, columns = np.indices(numbers.shape[-2:])
    value: Array = numbers.astype(np.float64) * scale.astype(np.float64)[..., rows // 128, columns // 128]
    return value


def linear_fp8_block(x: Array, weight: Array, scale: Array, activations: str) -> Array:
    assert activations == "none"
    return linear(x, fp8_value(weight, scale))


def mla_attention_fp8_block(kv_b: Array, kv_b_scale: Array, activations: str, **others: Any) -> Array:
    assert activations == "none"
    return mla_attention(kv_b=fp8_value(kv_b, kv_b_scale), **others)


def moe_experts_fp8_block(x: Array, ids: Array, weights: Array, activations: str, **banks: Array) -> Array:
    assert activations == "none"
    gate, up, down = (fp8_value(banks[name], banks[f"{name}_scale"]) for name in ("gate", "up", "down"))
    return moe_experts(x, ids, weights, gate, up, down)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    shares: Array = powers / powers.sum()
    return shares
