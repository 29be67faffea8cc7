"""The mixture-of-experts keys of config.json and the rules that tie them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from dsv3export.config.architectures import Family
from dsv3export.config.fields import Fields

TopkMethod = Literal["noaux_tc", "greedy", "group_limited_greedy"]
ScoringFunc = Literal["sigmoid", "softmax"]

_MAX_EXPERTS = 4096
_MAX_DIM = 2**20


@dataclass(frozen=True)
class Routing:
    """As in `ModelConfig`; all sizes are 0, and there is one group, in a dense model."""

    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    n_group: int
    topk_group: int
    topk_method: TopkMethod
    scoring_func: ScoringFunc
    norm_topk_prob: bool
    routed_scaling_factor: float


def read_routing(fields: Fields, family: Family) -> Routing:
    """The routing, with the family's defaults; greedy selection knows no groups, so it gets one.

    Raises:
        ConfigError: A value that is out of range or does not fit the others.
    """
    experts = fields.nullable_integer("n_routed_experts", 0, _MAX_EXPERTS) or 0
    methods, scorings = ("noaux_tc", "greedy", "group_limited_greedy"), ("sigmoid", "softmax")
    method = cast(TopkMethod, fields.choice("topk_method", methods, default=family.topk_method))
    n_group, topk_group = 1, 1
    if experts and method != "greedy":
        n_group, topk_group = _read_groups(fields, family, experts, method)
    kept = experts // n_group * topk_group
    routing = Routing(
        n_routed_experts=experts,
        n_shared_experts=(fields.nullable_integer("n_shared_experts", 0, _MAX_EXPERTS) or 0) if experts else 0,
        num_experts_per_tok=_read_top_k(fields, kept, experts) if experts else 0,
        moe_intermediate_size=fields.integer("moe_intermediate_size", 1, _MAX_DIM) if experts else 0,
        n_group=n_group,
        topk_group=topk_group,
        topk_method=method,
        scoring_func=cast(ScoringFunc, fields.choice("scoring_func", scorings, default=family.scoring_func)),
        norm_topk_prob=fields.boolean("norm_topk_prob", family.norm_topk_prob),
        routed_scaling_factor=fields.number("routed_scaling_factor", 1e-6, 1e6, default=family.routed_scaling_factor),
    )
    if family.model_type == "deepseek_v2" and routing.norm_topk_prob and routing.routed_scaling_factor != 1.0:
        # DeepSeek's V2 code then skips the factor, other programs apply it: two models under one config.
        raise fields.error("routed_scaling_factor", "1 where a deepseek_v2 model has norm_topk_prob true")
    return routing


def _read_groups(fields: Fields, family: Family, experts: int, method: str) -> tuple[int, int]:
    """Returns (n_group, topk_group)."""
    n_group = fields.integer("n_group", 1, _MAX_EXPERTS, default=family.n_group)
    if experts % n_group:
        raise fields.error("n_group", f"a divisor of n_routed_experts ({experts})")
    if method == "noaux_tc" and experts // n_group < 2:
        most = max(1, experts // 2)
        raise fields.error("n_group", f"at most {most} (noaux_tc scores a group of experts by its two best)")
    topk_group = fields.integer("topk_group", 1, _MAX_EXPERTS, default=min(family.topk_group, n_group))
    if topk_group > n_group:
        raise fields.error("topk_group", f"at most n_group ({n_group})")
    return n_group, topk_group


def _read_top_k(fields: Fields, kept: int, experts: int) -> int:
    top_k = fields.integer("num_experts_per_tok", 1, _MAX_EXPERTS)
    if top_k > kept:
        raise fields.error("num_experts_per_tok", f"at most the {kept} of {experts} experts in the topk_group groups")
    return top_k
