"""What a layout must divide, where stages begin, what ranks hold, and how long a step takes at best."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.config import ModelConfig
from dsv3export.engine.parallel import Layout
from dsv3export.errors import RequestError
from dsv3export.graphs.build import build_engine
from dsv3export.presets import preset
from dsv3export.recipe import Recipe
from dsv3export.sizing import DEVICES, Workload
from dsv3export.sizing.parallel import _balanced, check_layout, stage_layers
from dsv3export.sizing.plan import usable_bytes
from dsv3export.sizing.rank_weights import rank_weights
from dsv3export.sizing.step_time import Links, StepTime, step_time
from tests.support.synthetic import tiny_config

V3 = preset("deepseek_v3")
FP8, INT4 = Recipe.for_precision("fp8"), Recipe.for_precision("int4")


@pytest.mark.parametrize(
    "layout", [Layout(tp=8), Layout(pp=2, tp=8), Layout(tp=16), Layout(ep=16), Layout(tp=4, ep=4), Layout(61, 2, 1)]
)
def test_deepseek_v3_is_cut_by(layout: Layout) -> None:
    check_layout(V3, FP8, layout)


@pytest.mark.parametrize(
    ("layout", "recipe", "message"),
    [
        (Layout(pp=62), FP8, "--pp 62: expected at most the model's 61 layers"),
        (Layout(tp=3), FP8, "--tp = 3: expected a divisor of the model's 128 attention heads"),
        (Layout(ep=24), FP8, "--ep = 24: expected a divisor of the model's 256 routed experts"),
        (Layout(tp=256), FP8, "--tp = 256: expected a divisor of the model's 128 attention heads"),
        (Layout(tp=64, ep=64), FP8, "--tp x --ep = 4096: expected a divisor of the model's 2,048 numbers of the sh"),
        (Layout(tp=128), FP8, "attention that do not cut through FP8's blocks of 128, got 192 numbers of 24,576"),
        (Layout(tp=32), INT4, "routed_experts that do not cut through the int4 scheme's groups of 128, got 64 numbers"),
        (Layout(tp=8, ep=8), INT4, "--tp x --ep = 64: expected parts of the shared_experts that do not cut through"),
    ],
)
def test_refused(layout: Layout, recipe: Recipe, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_layout(V3, recipe, layout)


def test_experts_are_needed_for_expert_parallelism() -> None:
    dense = ModelConfig.from_dict(tiny_config(n_routed_experts=None))
    with pytest.raises(RequestError, match="--ep 2: expected a model with routed experts, got one without"):
        check_layout(dense, Recipe.for_precision("bf16"), Layout(ep=2))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 80), st.integers(0, 80), st.data())
def test_stages_are_as_even_as_can_be(costs: list[int], before: int, after: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(costs)))

    def largest(ends: tuple[int, ...]) -> int:
        borders = [0, *ends, len(costs)]
        sums = [sum(costs[a:b]) for a, b in pairwise(borders)]
        sums[0] += before
        sums[-1] += after
        return max(sums)

    found = _balanced(costs, before, after, parts)
    assert [layer for stage in found for layer in stage] == list(range(len(costs)))
    assert all(found) and len(found) == parts
    best = min(largest(ends) for ends in combinations(range(1, len(costs)), parts - 1))
    assert largest(tuple(stage.stop for stage in found[:-1])) == best


def test_stages_of_deepseek_v3() -> None:
    """The last stage has the MTP layer and two heads beside its layers."""
    assert [len(stage) for stage in stage_layers(V3, FP8, Layout(pp=2, tp=8))] == [33, 28]


def test_weights_are_those_of_a_build(tiny_bf16: Path, tmp_path: Path) -> None:
    layout, recipe = Layout(pp=2, tp=2), Recipe.for_precision("int8")
    report = build_engine(tiny_bf16, tmp_path / "engine", precision="int8", layout=layout)
    config = ModelConfig.from_file(tiny_bf16 / "config.json")
    frequencies = config.qk_rope_head_dim // 2 * 4
    built = [sum(entry.nbytes for entry in manifest.weights) for manifest in report.ranks]
    assert built == [each.total + frequencies for each in rank_weights(config, recipe, layout, mtp=True)]


def test_one_rank_holds_the_whole() -> None:
    whole = rank_weights(V3, FP8, Layout(), mtp=True)[0]
    for layout in (Layout(tp=8), Layout(ep=8), Layout(tp=2, ep=4)):
        parts = rank_weights(V3, FP8, layout, mtp=True)
        assert len({each.total for each in parts}) == 1
        assert sum(each.experts for each in parts) == whole.experts
        assert whole.total < sum(each.total for each in parts) < 1.2 * whole.total


def timed(layout: Layout, links: Links, **work: int) -> StepTime:
    device = DEVICES["h200"]
    return step_time(V3, FP8, layout, device, Workload(**{"batch": 8, **work}), links, usable_bytes(device))


def test_a_step_by_hand() -> None:
    """8 ranks, one token: shared weights and 8 of 256 experts are read, 122 sums of 7168 bfloat16 are made."""
    step = timed(Layout(tp=8), Links(), batch=1, context=1)
    (stage,) = step.stages
    weights = rank_weights(V3, FP8, Layout(tp=8), mtp=False)[0]
    assert stage.bytes_read == pytest.approx(weights.shared + weights.experts * 8 / 256 + 61 * 576 * 2)
    sums = 122 * (10e-6 + 2 * 7 / 8 * 7168 * 2 / 450e9)
    gather = 10e-6 + 7 / 8 * 129280 * 2 / 450e9
    assert stage.collectives == pytest.approx(sums + gather)
    assert step.seconds == pytest.approx(max(stage.reading, stage.computing) + sums + gather)


def test_the_network_is_slower_than_a_machine() -> None:
    near = timed(Layout(tp=16), Links(node_ranks=16))
    far = timed(Layout(tp=16), Links(node_ranks=8))
    assert far.stages[0].collectives > 2 * near.stages[0].collectives
    pipeline = timed(Layout(pp=2, tp=8), Links(node_ranks=8))
    assert pipeline.stages[0].collectives < near.stages[0].collectives < far.stages[0].collectives
    assert pipeline.stages[0].sending > 30e-6


@settings(max_examples=10)
@given(st.sampled_from([Layout(tp=8), Layout(ep=8), Layout(2, 2, 2), Layout(4, 1, 2)]), st.integers(1, 64))
def test_better_links_are_not_slower(layout: Layout, batch: int) -> None:
    short = replace(V3, num_hidden_layers=7)
    device = DEVICES["h200"]
    times = [
        step_time(short, FP8, layout, device, Workload(batch), links, usable_bytes(device)).seconds
        for links in (Links(), Links(node_bandwidth=900e9), Links(node_latency=1e-6), Links(wire_bytes=1))
    ]
    assert all(time <= times[0] for time in times)


def test_memory() -> None:
    assert timed(Layout(tp=8), Links(), batch=64, context=2048).fits
    assert not timed(Layout(tp=4), Links()).fits
    assert not timed(Layout(tp=8), Links(), batch=512, context=4096).fits
