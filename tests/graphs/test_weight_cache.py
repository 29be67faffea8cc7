"""Weights for the executor: large ones are made in parts, and are gone when they are forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs import weight_units
from dsv3export.graphs.executor import recipe_graph
from dsv3export.graphs.streamed_bank import held
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.recipe import Recipe

NAMES = (
    "lm_head.weight.q", "lm_head.weight.scale", "model.layers.1.mlp.experts.up_proj.q",
    "model.layers.2.self_attn.q_a_proj.weight.q",
)  # fmt: skip


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_parts_make_the_same_bytes(precision: str, tiny_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(tiny_bf16)
    exprs = recipe_graph(checkpoint.config, "trunk", Recipe.for_precision(precision)).weights
    whole = WeightCache(checkpoint, exprs, 1 << 30)
    expected = {name: held(whole[name]).clone() for name in NAMES}
    monkeypatch.setattr(weight_units, "UNIT_ELEMENTS", 1 << 15)
    parts = WeightCache(checkpoint, exprs, 1 << 30)
    assert all(torch.equal(held(parts[name]), expected[name]) for name in NAMES)


def test_what_is_forgotten_is_made_again(tiny_bf16: Path) -> None:
    checkpoint = Checkpoint.open(tiny_bf16)
    exprs = recipe_graph(checkpoint.config, "trunk", Recipe.for_precision("int8")).weights
    weights = WeightCache(checkpoint, exprs, 1 << 30)
    first = held(weights[NAMES[0]])
    assert held(weights[NAMES[0]]) is first
    weights.forget()
    again = held(weights[NAMES[0]])
    assert again is not first and torch.equal(again, first)
