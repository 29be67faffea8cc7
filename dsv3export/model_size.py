"""How many parameters a model has, from its config alone."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from dsv3export.checkpoint.expected import expected_tensors, layer_of
from dsv3export.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model.

    Attributes:
        total: Of the trunk: embedding, decoder layers, final norm and head (a tied head counts once). Scales of FP8
            weights are no parameters. 671.0 B for DeepSeek-V3, the figure that is published.
        active: Those of the trunk that take part in arithmetic for one token: `total` without the embedding, of which
            one row is looked up, and without the routed experts that the token is not sent to. A tied head does
            arithmetic, so it counts. 36.6 B for DeepSeek-V3, as its README_WEIGHTS.md counts.
        mtp: Of the multi-token-prediction modules, without their copies of embedding and head. 11.6 B for DeepSeek-V3.
        by_component: The parts of `total`: embedding, attention, dense_mlp, router, routed_experts, shared_experts,
            norms, head; they sum up to it.
    """

    total: int
    active: int
    mtp: int
    by_component: dict[str, int]


def count_parameters(config: ModelConfig, layers: Collection[int] | None = None) -> ParameterCount:
    """Counts without reading or allocating any weight.

    Args:
        layers: Count only these decoder layers, and none of the MTP modules.
    """
    parts = dict.fromkeys(_COMPONENTS, 0)
    mtp = 0
    for name, shape in expected_tensors(config).items():
        layer = layer_of(name)
        if layer is not None and layers is not None and layer not in layers:
            continue
        if layer not in config.mtp_layer_ids:
            parts[tensor_part(name)] += math.prod(shape)
        elif not name.endswith((".embed_tokens.weight", ".shared_head.head.weight")):
            mtp += math.prod(shape)
    total = sum(parts.values())
    idle = parts["embedding"] if not config.tie_word_embeddings else 0
    if config.n_routed_experts:
        idle += (
            parts["routed_experts"] // config.n_routed_experts * (config.n_routed_experts - config.num_experts_per_tok)
        )
    return ParameterCount(total, total - idle, mtp, parts)


_COMPONENTS = {
    "embedding": re.compile(r"^model\.embed_tokens\."),
    "attention": re.compile(r"\.self_attn\.\w+_proj(_with_mqa)?\."),
    "dense_mlp": re.compile(r"\.mlp\.(gate|up|down)_proj\."),
    "router": re.compile(r"\.mlp\.gate\."),
    "routed_experts": re.compile(r"\.mlp\.experts\."),
    "shared_experts": re.compile(r"\.mlp\.shared_experts\."),
    "norms": re.compile(r"norm\.weight$"),
    "head": re.compile(r"^lm_head\."),
}


def tensor_part(name: str) -> str:
    """Which part of the model a checkpoint's tensor belongs to, e.g. ``routed_experts``."""
    return next(component for component, pattern in _COMPONENTS.items() if pattern.search(name))
