"""Checks of decode attention: ragged slots, several query tokens, parts without tokens, odd and true dims."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.mla_attention.op import visible
from dsv3export.plugins.mla_attention.tensorrt import attend


def _reference(q: Tensor, q_pe: Tensor, cache: Tensor, start: Tensor, scale: float) -> Tensor:
    """`op.absorbed` between its two up-projections, in float32."""
    longest = int(start.max()) + q.shape[1]
    latent = cache[:, :longest].float()
    scores = torch.einsum("bshw,btw->bhst", torch.cat([q, q_pe], dim=-1).float(), latent) * scale
    weights = scores.masked_fill(~visible(start, q.shape[1], longest), float("-inf")).softmax(dim=-1)
    return torch.einsum("bhst,btc->bshc", weights, latent[..., : q.shape[-1]])


def _attend(
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


CHECKS = (
    _attend("first token", [0], 1, 1, (1, 8, 2), 1),
    _attend("one token of many", [127], 1, 128, (2, 32, 16), 4),
    _attend("ragged, some parts empty", [0, 128, 30], 1, 160, (4, 24, 6), 8),
    _attend("several queries", [5, 127, 0], 4, 140, (3, 40, 16), 4),
    _attend("queries across a part's border", [62], 4, 70, (16, 32, 16), 2),
    _attend("more rows than a program takes", [40, 3], 3, 50, (20, 16, 8), 3),
    _attend("true dims", [129, 0], 2, 160, (16, 512, 64), 4, 0.07),
    _attend("many heads", [33], 1, 40, (128, 64, 16), 2),
)
