"""dsv3::MoERoute: group-limited top-k routing of DeepSeekMoE, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.moe_route.function import function
from dsv3export.plugins.registry import Attribute, Op, Port


def ranked(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest per row, best first; of equal scores the lower index wins.

    torch.topk leaves ties open; a router must not, or two right programs route differently.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count].contiguous()


def kept_experts(choice: Tensor, n_group: int, topk_group: int, group_top: int) -> Tensor:
    """Which experts lie in the topk_group best groups; a group's score is the sum of its `group_top` best.

    Args:
        choice: [T, E] biased scores.

    Returns:
        [T, E] bool.
    """
    tokens, experts = choice.shape
    grouped = choice.view(tokens, n_group, experts // n_group)
    group_scores = grouped.topk(group_top, dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, ranked(group_scores, topk_group), True)
    return kept.repeat_interleave(experts // n_group, dim=1)


@torch.library.custom_op("dsv3::moe_route", mutates_args=())
def moe_route(
    logits: Tensor,
    bias: Tensor,
    k: int,
    n_group: int,
    topk_group: int,
    group_top: int,
    scoring: str,
    normalize: int,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    """Choose k experts per token (DeepSeek-V3 paper, eqs. 13-16; the bias selects, the unbiased scores weigh).

    Args:
        logits: [T, E] float32.
        bias: [E] float32, e_score_correction_bias; zeros for models without one.
        k: Experts per token.
        n_group, topk_group: Experts lie in n_group equal groups; only those of the best topk_group are eligible.
        group_top: How many of a group's best scores make its score: 2 for noaux_tc, 1 for group_limited_greedy.
        scoring: "sigmoid" or "softmax".
        normalize: 1 to divide the chosen weights by their sum (+1e-20).
        scaling: routed_scaling_factor.

    Returns:
        ids [T, k] int64, best biased score first; weights [T, k] float32.
    """
    scores = torch.sigmoid(logits) if scoring == "sigmoid" else torch.softmax(logits, dim=-1)
    choice = scores + bias
    if n_group > 1:
        # Masked experts are -inf, as in the official code: a biased score may be negative, so 0.0 would be eligible.
        choice = choice.masked_fill(~kept_experts(choice, n_group, topk_group, group_top), float("-inf"))
    ids = ranked(choice, k)
    weights = scores.gather(1, ids)
    if normalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return ids, weights * scaling


@moe_route.register_fake
def _(
    logits: Tensor,
    bias: Tensor,
    k: int,
    n_group: int,
    topk_group: int,
    group_top: int,
    scoring: str,
    normalize: int,
    scaling: float,
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], k)
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape)


MOE_ROUTE = Op(
    name="MoERoute",
    torch_name="dsv3::moe_route",
    doc="Group-limited top-k routing (DeepSeek-V3, section 2.1.2); equal scores go to the lower index.",
    inputs=(Port("logits", ("float",), ("T", "E")), Port("bias", ("float",), ("E",))),
    outputs=(Port("ids", ("int64",), ("T", "k")), Port("weights", ("float",), ("T", "k"))),
    attributes=(
        Attribute("k", "int", "experts per token"),
        Attribute("n_group", "int", "number of expert groups"),
        Attribute("topk_group", "int", "groups that stay eligible"),
        Attribute("group_top", "int", "best scores that are summed into a group's score"),
        Attribute("scoring", "string", "sigmoid or softmax"),
        Attribute("normalize", "int", "1: the chosen weights are divided by their sum"),
        Attribute("scaling", "float", "routed_scaling_factor"),
    ),
    kernel=moe_route,
    function=function,
)
