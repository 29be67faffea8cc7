"""Attention: softmax(Q K^T + mask) V, without a scale of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.replay_layers.layer import Inputs, Layer, Rule, optional, present, wide

_KNOWN = frozenset({"normalization", "causal_kind", "decomposable"})


def _attention(layer: Layer, inputs: Inputs) -> list[Tensor]:
    """Q [B, H, S, D], K and V [B, H or fewer, L, D] -> [B, H, S, D].

    As fused kernels have it: products, mask and softmax in float32, the weights rounded to the inputs' type before the
    second product.
    """
    query, key, value = (present(layer, inputs, index) for index in range(3))
    if unknown := layer.attributes.keys() - _KNOWN:
        raise layer.error(f"{', '.join(sorted(unknown))} is not replayed")
    if layer.choice("normalization") != "SOFTMAX":
        raise layer.error(f"normalization {layer.choice('normalization')} is not replayed")
    shared = query.shape[1] // key.shape[1]
    keys, values = (wide(each).repeat_interleave(shared, 1) for each in (key, value))
    scores = _masked(layer, wide(query) @ keys.mT, optional(inputs, 3))
    weights = scores.softmax(-1).to(query.dtype)
    return [(wide(weights) @ values).to(query.dtype)]


def _masked(layer: Layer, scores: Tensor, mask: Tensor | None) -> Tensor:
    """A mask of BOOL says what is seen; another is added. Causal: aligned at the first or the last query and key."""
    if mask is not None:
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + wide(mask)
    kind = layer.choice("causal_kind", "NONE")
    if kind == "NONE":
        return scores
    queries, keys = scores.shape[-2:]
    behind = 0 if kind == "UPPER_LEFT" else keys - queries
    return scores.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(behind), -torch.inf)


RULES = {"add_attention_v2": Rule(("*", "*", "*", "normalization", "causal_kind"), _attention)}
