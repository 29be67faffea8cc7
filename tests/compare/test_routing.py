"""Differences of routers' choices, and which of them their scores explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.compare.routing import Routing
from dsv3export.config import ModelConfig
from dsv3export.plugins.moe_route.op import moe_route
from tests.support.synthetic import tiny_config

# 8 experts in 4 groups of which 2 count, 2 experts a token.
CONFIG = ModelConfig.from_dict(tiny_config(n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=2))


def route(logits: Any, bias: Any) -> Any:
    """By the op's definition."""
    ids, _ = moe_route(
        torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(bias.astype(np.float32)), 2, 4, 2, 2,
        "sigmoid", 1, 1.0,
    )  # fmt: skip
    return ids.numpy()


@given(seed=st.integers(0, 2**31), size=st.floats(1e-7, 1.0))
def test_a_right_router_has_only_flips_that_its_scores_explain(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    bias = rng.normal(size=8)
    mine = rng.normal(size=(16, 8)).astype(np.float32)
    other = (mine + size * rng.normal(size=mine.shape)).astype(np.float32)
    routing = Routing(CONFIG, bias.astype(np.float32))
    flips = routing.add(0, route(mine, bias), route(other, bias), (mine, other))
    assert all(flip.explained for flip in flips)
    changed = [(set(a) != set(b)) for a, b in zip(route(mine, bias).tolist(), route(other, bias).tolist(), strict=True)]
    assert [flip.position for flip in flips] == np.flatnonzero(changed).tolist()


def test_another_choice_on_the_same_scores_is_not_explained() -> None:
    logits = np.linspace(-1, 1, 8)[None].astype(np.float32)
    right = route(logits, np.zeros(8))
    (flip,) = Routing(CONFIG, None).add(3, right, np.array([[0, 1]]), (logits, logits))
    assert (flip.prompt, flip.position, flip.got) == (3, 0, (0, 1))
    assert flip.expected == (6, 7)
    assert flip.moved == 0
    assert not flip.explained


def test_the_order_of_the_experts_does_not_matter() -> None:
    logits = np.zeros((2, 8), np.float32)
    routing = Routing(CONFIG, None)
    assert routing.add(0, np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 3]]), (logits, logits)) == []
    assert routing.summary().overlap == 1


def test_the_margin_is_the_smallest_of_all_decisions() -> None:
    """Groups win by the sum of their two best scores; sigmoid(0) is 1/2."""
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]])
    logits = np.log(scores / (1 - scores))
    (flip,) = Routing(CONFIG, None).add(0, np.array([[0, 1]]), np.array([[0, 2]]), (logits, logits))
    # Groups: 1.7 1.3 0.9 0.5, so the second is 0.4 ahead; the second expert is 0.1 ahead of the third.
    assert flip.margin == pytest.approx(0.1)


def test_overlap_counts_experts() -> None:
    logits = np.zeros((2, 8), np.float32)
    routing = Routing(CONFIG, None)
    routing.add(0, np.array([[1, 2], [3, 4]]), np.array([[1, 5], [6, 7]]), (logits, logits))
    summary = routing.summary()
    assert (summary.tokens, summary.overlap, len(summary.flips)) == (2, 0.25, 2)
