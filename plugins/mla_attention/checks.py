"""Checks of attention: ragged slots, several query tokens, parts without tokens, chunks, odd and true dims."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.kernels.stored import NATIVE_E4M3
from dsv3export.plugins.latent_append_fp8.op import rounded_rows
from dsv3export.plugins.mla_attention.op import visible
from dsv3export.plugins.mla_attention.prefill import MLA_PREFILL
from dsv3export.plugins.mla_attention.tensorrt import attend, attend_fp8


def _reference(q: Tensor, q_pe: Tensor, cache: Tensor, start: Tensor, scale: float) -> Tensor:
    """`op.absorbed` between its two up-projections, in float32."""
    longest = int(start.max()) + q.shape[1]
    latent = cache[:, :longest].float()
    scores = torch.einsum("bshw,btw->bhst", torch.cat([q, q_pe], dim=-1).float(), latent) * scale
    weights = scores.masked_fill(~visible(start, q.shape[1], longest), float("-inf")).softmax(dim=-1)
    return torch.einsum("bhst,btc->bshc", weights, latent[..., : q.shape[-1]])


def decode_check(
    name: str, start: list[int], queries: int, capacity: int, dims: tuple[int, int, int], parts: int, scale: float = 0.1
) -> Check:
    """`dims`: heads, latent, rope. Rows of the cache that no query may see hold large numbers."""
    heads, latent, rope = dims

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random, slots = Samples(name), len(start)
        cache = random.normal(slots, capacity, latent + rope)
        for slot, first in enumerate(start):
            cache[slot, first + queries :] = 1e4
        q, q_pe = random.normal(slots, queries, heads, latent), random.normal(slots, queries, heads, rope)
        given = [tensor.to(DTYPES[dtype]) for tensor in (q, q_pe, cache)]
        held = torch.tensor(start)
        out = attend(call, given[0], given[1], given[2], held, scale, parts, dtype)
        return [(out, _reference(given[0], given[1], given[2], held, scale))]

    return Check("MlaAttention", name, compare)


def decode_fp8_check(
    name: str, start: list[int], queries: int, capacity: int, dims: tuple[int, int, int, int], parts: int
) -> Check:
    """`dims`: heads, latent, rope, groups of scales. As `decode_check`, over what `latent_append_fp8` writes."""
    heads, latent, rope, groups = dims

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random, slots = Samples(name), len(start)
        rows = random.normal(slots, capacity, latent) * random.uniform(0.1, 10.0, slots, capacity, 1)
        k_pe = random.normal(slots, capacity, rope)
        for slot, first in enumerate(start):
            rows[slot, first + queries :] = k_pe[slot, first + queries :] = 1e4
        cache, scale = rounded_rows(rows, groups)
        side = torch.cat([k_pe.to(torch.bfloat16), scale], dim=-1)
        q, q_pe = random.normal(slots, queries, heads, latent), random.normal(slots, queries, heads, rope)
        given = [tensor.to(DTYPES[dtype]) for tensor in (q, q_pe)]
        held = torch.tensor(start)
        out = attend_fp8(call, given[0], given[1], cache, side, held, 0.05, parts, dtype)
        latents = cache.float().unflatten(-1, (groups, -1)) * scale.float()[..., None]
        # The products take what the cache holds in the type of activations.
        seen = torch.cat([latents.flatten(-2), k_pe.to(torch.bfloat16).float()], dim=-1).to(DTYPES[dtype])
        return [(out, _reference(given[0], given[1], seen, held, 0.05))]

    return Check("MlaAttention", name, compare, least=NATIVE_E4M3)


def prefill_check(
    name: str, start: list[int], queries: int, capacity: int, dims: tuple[int, int, int, int], scale: float = 0.1
) -> Check:
    """`dims`: heads, nope, rope, value. Keys and values of rows that no query may see are large."""
    heads, nope, rope, value = dims

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random, slots = Samples(name), len(start)
        latent, longest = 8, max(start) + queries
        cache = random.normal(slots, capacity, latent + rope)
        kv = random.normal(slots, longest, heads, nope + value)
        for slot, first in enumerate(start):
            cache[slot, first + queries :] = kv[slot, first + queries :] = 1e4
        q, q_pe = random.normal(slots, queries, heads, nope), random.normal(slots, queries, heads, rope)
        q, q_pe, kv, cache = (tensor.to(DTYPES[dtype]) for tensor in (q, q_pe, kv, cache))
        held = torch.tensor(start)
        (out,) = call(MLA_PREFILL, (q, q_pe, kv, cache, held), scale=scale, value=value)
        k_pe = cache[:, :longest, None, latent:].expand(-1, -1, heads, -1)
        keys = torch.cat([kv[..., :nope], k_pe], dim=-1).float()
        scores = torch.einsum("bshw,bthw->bhst", torch.cat([q, q_pe], dim=-1).float(), keys) * scale
        weights = scores.masked_fill(~visible(held, queries, longest), float("-inf")).softmax(dim=-1)
        return [(out, torch.einsum("bhst,bthv->bshv", weights, kv[..., nope:].float()))]

    return Check("MlaAttention", name, compare)


CHECKS = (
    decode_check("first token", [0], 1, 1, (1, 8, 2), 1),
    decode_check("one token of many", [127], 1, 128, (2, 32, 16), 4),
    decode_check("ragged, some parts empty", [0, 128, 30], 1, 160, (4, 24, 6), 8),
    decode_check("several queries", [5, 127, 0], 4, 140, (3, 40, 16), 4),
    decode_check("queries across a part's border", [62], 4, 70, (16, 32, 16), 2),
    decode_check("more rows than a program takes", [40, 3], 3, 50, (20, 16, 8), 3),
    decode_check("true dims", [129, 0], 2, 160, (16, 512, 64), 4, 0.07),
    decode_check("one part", [5, 33, 0], 2, 40, (3, 16, 8), 1),
    decode_check("many heads", [33], 1, 40, (128, 64, 16), 2),
    decode_fp8_check("fp8 cache, ragged, first token", [0, 65, 17], 1, 70, (4, 64, 16, 1), 2),
    decode_fp8_check("fp8 cache, several queries, groups", [62, 3], 3, 70, (16, 128, 24, 4), 3),
    prefill_check("prefill, one token", [0], 1, 1, (2, 16, 8, 16)),
    prefill_check("prefill, ragged chunks over a cache", [0, 127, 30], 5, 140, (2, 24, 6, 20)),
    prefill_check("prefill, more rows than a program takes", [3], 129, 140, (1, 16, 8, 16)),
    prefill_check("prefill, true dims", [60], 70, 130, (1, 128, 64, 128), 0.07),
)
