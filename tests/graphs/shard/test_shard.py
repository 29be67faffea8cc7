"""Every layout of 2 and 4 ranks computes what the uncut graph does, in the executor, with every kind of weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from dsv3export.engine.parallel import Layout
from dsv3export.errors import RequestError
from dsv3export.recipe import Recipe
from dsv3export.sizing.parallel import check_layout
from dsv3export.sizing.ranks import plan_ranks
from tests.graphs.shard.layouts import LAYOUTS, name_of
from tests.graphs.shard.whole_model import (
    CAPACITY,
    FIRST,
    NEXT,
    PROMPTS,
    SECOND,
    SLOTS,
    Computed,
    largest_difference,
    rows,
    same_tokens,
    whole_model,
)
from tests.support.simulated_ranks import SimulatedRanks

# The routed experts' width of 128 cut in four leaves 32 numbers: one group, a quarter of an FP8 block.
GROUP = 32
QUANTISED = [
    ("bf16", Layout(tp=2, ep=2)),
    ("int8", Layout(tp=4)),
    ("int4", Layout(tp=4)),
    ("fp8", Layout(ep=4)),
]


def recipe_of(precision: str) -> Recipe:
    """Integers in small groups; 4 bits with zero points, two in a byte, of which a rank may have an odd number.

    Activations stay as they are: where they are rounded, float noise tips some of them.
    """
    recipe = Recipe.for_precision(precision)
    if not precision.startswith("int"):
        return recipe
    return recipe.with_schemes(
        lambda scheme: (
            replace(scheme, group_size=GROUP, activations="none", symmetric=scheme.format == "int8", method="rtn")
            if scheme.format in ("int8", "int4")
            else scheme
        )
    )


@cache
def whole(checkpoint: Path, precision: str) -> Computed:
    return whole_model(checkpoint, recipe_of(precision))


def cut(checkpoint: Path, layout: Layout, precision: str) -> tuple[Computed, SimulatedRanks]:
    ranks = SimulatedRanks(checkpoint, layout, recipe_of(precision))
    caches = ranks.new_caches(len(SLOTS), CAPACITY)
    prefill = ranks.step(PROMPTS, FIRST, caches, SLOTS, rows(PROMPTS))
    step = ranks.step(NEXT, SECOND, caches, SLOTS, rows(NEXT))
    drafts = ranks.new_draft_caches(len(SLOTS), CAPACITY)
    return Computed(prefill, step, ranks.draft(prefill[1], PROMPTS, FIRST, drafts, SLOTS, rows(PROMPTS))), ranks


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_cut_is_whole(tiny_bf16: Path, layout: Layout) -> None:
    computed, ranks = cut(tiny_bf16, layout, "fp32")

    assert largest_difference(whole(tiny_bf16, "fp32"), computed) < 1e-4
    assert same_tokens(whole(tiny_bf16, "fp32"), computed)
    # bytes on the wire: those of the plan, for the two steps and the draft
    plans = plan_ranks(ranks.config, ranks.recipe, layout, [0] * layout.world, mtp=True)
    for plan, communicator in zip(plans, ranks.communicators, strict=True):
        planned: Counter[str] = Counter()
        for traffic, tokens in ((plan.traffic, PROMPTS.size + NEXT.size), (plan.draft_traffic, PROMPTS.size)):
            for each in traffic:
                planned[each.op] += each.payload_per_row * tokens
        del planned["send"]
        assert communicator.bytes == planned


@pytest.mark.parametrize(("precision", "layout"), QUANTISED, ids=lambda x: name_of(x) if isinstance(x, Layout) else x)
def test_quantised_weights_are_cut_after_they_were_quantised(
    tiny_bf16: Path, tiny_fp8: Path, precision: str, layout: Layout
) -> None:
    checkpoint = tiny_fp8 if precision == "fp8" else tiny_bf16
    computed, _ = cut(checkpoint, layout, precision)

    assert largest_difference(whole(checkpoint, precision), computed) < 1e-4
    assert same_tokens(whole(checkpoint, precision), computed)


def test_fp8_parts_within_a_block_share_its_scale(tiny_fp8: Path) -> None:
    """Attention's heads would be cut through blocks: of this model only the experts and MLPs are FP8."""
    recipe = Recipe.for_precision("fp8")
    mixed = replace(
        recipe, components={**recipe.components, "attention": Recipe.for_precision("bf16").components["attention"]}
    )
    layout = Layout(tp=2, ep=2)
    with pytest.raises(RequestError, match="attention that do not cut through FP8's blocks of 128"):
        check_layout(SimulatedRanks(tiny_fp8, Layout(pp=2), recipe).config, recipe, layout)
    ranks = SimulatedRanks(tiny_fp8, layout, mixed)
    check_layout(ranks.config, mixed, layout)
    logits, _ = ranks.step(PROMPTS, FIRST, ranks.new_caches(len(SLOTS), CAPACITY), SLOTS, rows(PROMPTS))
    assert abs(whole_model(tiny_fp8, mixed).prefill[0] - logits).max() < 1e-4


def test_a_wrong_cut_is_seen(tiny_bf16: Path) -> None:
    """Ranks in each other's place: the comparison must fail."""
    ranks = SimulatedRanks(tiny_bf16, Layout(tp=2), recipe_of("fp32"))
    ranks.weights.reverse()
    ranks.graphs.reverse()
    ranks.weights[0] = ranks.weights[1]
    logits, _ = ranks.step(PROMPTS, FIRST, ranks.new_caches(len(SLOTS), CAPACITY), SLOTS, rows(PROMPTS))
    assert abs(whole(tiny_bf16, "fp32").prefill[0] - logits).max() > 0.1
