"""Triton: the router, one token a program."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def moe_route(
    logits_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    GROUPS_PADDED: tl.constexpr,
    MEMBERS_PADDED: tl.constexpr,
    KEPT: tl.constexpr,
    GROUP_TOP: tl.constexpr,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    SCORING: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCALING: tl.constexpr,
):
    """logits [T, E], bias [E] -> ids [T, K], weights [T, K]; of equal scores the lower index wins. Grid: (T)."""
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS_PADDED), tl.arange(0, MEMBERS_PADDED)
    expert = group[:, None] * MEMBERS + member[None, :]
    real = (group < GROUPS)[:, None] & (member < MEMBERS)[None, :]
    logit = tl.load(logits_ptr + token * (GROUPS * MEMBERS) + expert, mask=real, other=float("-inf"))
    if SCORING == "sigmoid":
        score = 1.0 / (1.0 + tl.exp(-logit))
    else:
        raised = tl.exp(logit - tl.max(tl.max(logit, 1), 0))
        score = raised / tl.sum(tl.sum(raised, 1), 0)
    choice = tl.where(real, score + tl.load(bias_ptr + expert, mask=real, other=0.0), float("-inf"))
    if GROUPS > 1:
        rest = choice
        worth = tl.zeros((GROUPS_PADDED,), tl.float32)
        for _ in tl.static_range(GROUP_TOP):
            worth += tl.max(rest, 1)
            rest = tl.where(member[None, :] == tl.argmax(rest, 1)[:, None], float("-inf"), rest)
        worth = tl.where(group < GROUPS, worth, float("-inf"))
        kept = tl.zeros((GROUPS_PADDED,), tl.int32)
        for _ in tl.static_range(KEPT):
            best_group = tl.argmax(worth, 0)
            kept = tl.where(group == best_group, 1, kept)
            worth = tl.where(group == best_group, float("-inf"), worth)
        choice = tl.where((kept == 1)[:, None], choice, float("-inf"))

    size: tl.constexpr = GROUPS_PADDED * MEMBERS_PADDED
    flat_choice, flat_score = tl.reshape(choice, (size,)), tl.reshape(score, (size,))
    flat_expert, place = tl.reshape(expert, (size,)), tl.arange(0, size)
    turn = tl.arange(0, K_PADDED)
    ids = tl.zeros((K_PADDED,), tl.int32)
    weights = tl.zeros((K_PADDED,), tl.float32)
    for each in tl.static_range(K):
        chosen = place == tl.argmax(flat_choice, 0)
        ids = tl.where(turn == each, tl.sum(tl.where(chosen, flat_expert, 0), 0), ids)
        weights = tl.where(turn == each, tl.sum(tl.where(chosen, flat_score, 0.0), 0), weights)
        flat_choice = tl.where(chosen, float("-inf"), flat_choice)
    if NORMALIZE:
        weights = weights / (tl.sum(weights, 0) + 1e-20)
    tl.store(ids_ptr + token * K + turn, ids, mask=turn < K)
    tl.store(weights_ptr + token * K + turn, weights * SCALING, mask=turn < K)
