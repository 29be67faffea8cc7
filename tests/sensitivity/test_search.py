"""The choice beside a search of everything, and the mixes that are tried one after the other."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.recipe import Scheme
from dsv3export.sensitivity.front import pareto_front
from dsv3export.sensitivity.search import (
    Choice,
    Option,
    Target,
    best,
    choose,
    search,
    total_bytes,
    total_kl,
)
from dsv3export.sensitivity.units import Unit

SCHEME = Scheme.of("int8")
options = st.lists(
    st.builds(Option, st.just("int8"), st.just(SCHEME), st.integers(1, 1000), st.floats(0, 1)), min_size=1, max_size=3
)
problems = st.lists(options, min_size=1, max_size=4).map(
    lambda each: {Unit("attention", (place,)): found for place, found in enumerate(each)}
)
Problem = dict[Unit, list[Option]]


def every_choice(problem: Problem) -> list[Choice]:
    return [dict(zip(problem, each, strict=True)) for each in product(*problem.values())]


@given(problem=problems, max_kl=st.floats(1e-3, 2))
def test_a_bound_on_divergence_is_met_with_the_fewest_bytes(problem: Problem, max_kl: float) -> None:
    found = choose(problem, Target(max_kl=max_kl), 10)
    within = [each for each in every_choice(problem) if total_kl(each) <= max_kl * (1 - 1e-12)]
    if within:
        assert total_kl(found) <= max_kl * (1 + 1e-12)
        assert total_bytes(found, 10) <= min(total_bytes(each, 10) for each in within)
    else:
        assert total_kl(found) == pytest.approx(min(map(total_kl, every_choice(problem))))


@given(problem=problems, room=st.integers(0, 2000))
def test_a_bound_on_bytes_is_kept_with_the_least_divergence(problem: Problem, room: int) -> None:
    most = min(total_bytes(each, 7) for each in every_choice(problem)) + room
    found = choose(problem, Target(max_bytes=most), 7)
    within = [total_kl(each) for each in every_choice(problem) if total_bytes(each, 7) <= most]
    assert total_bytes(found, 7) <= most
    assert total_kl(found) == pytest.approx(min(within))


@given(problem=problems, room=st.integers(0, 1000), max_kl=st.floats(1e-3, 2))
def test_of_both_bounds_that_on_bytes_is_kept_first(problem: Problem, room: int, max_kl: float) -> None:
    most = min(total_bytes(each, 0) for each in every_choice(problem)) + room
    assert total_bytes(choose(problem, Target(max_kl, most), 0), 0) <= most


@given(st.integers(0, 1000))
def test_a_thinned_front_is_nearly_as_good(seed: int) -> None:
    draw = np.random.default_rng(seed)
    options = {unit: [(0, float(draw.uniform(1, 2))), (int(draw.integers(1, 10**9)), 0.0)] for unit in range(12)}
    exact, thin = pareto_front(options, most=1 << 12), pareto_front(options, most=100)
    assert len(thin.kl) <= 101
    for front in (exact, thin):
        for place in range(0, len(front.kl), 7):
            chosen = [options[unit][option] for unit, option in front.choice(place).items()]
            assert (sum(size for size, _ in chosen), sum(cost for _, cost in chosen)) == pytest.approx(
                (front.nbytes[place], front.kl[place])
            )
    for nbytes, kl in zip(exact.nbytes, exact.kl, strict=True):
        place = int(np.searchsorted(thin.nbytes, nbytes + 12 * exact.nbytes[-1] // 99, side="right")) - 1
        assert thin.kl[place] <= kl + 1e-9


def steps(*kls: float) -> list[Option]:
    """From few bytes to many."""
    return [Option("int8", SCHEME, 100 * (place + 1), kl) for place, kl in enumerate(kls)]


def test_no_step_is_taken_because_it_is_the_cheapest() -> None:
    """The best byte would be spent on the head, after which the attention does not fit any more."""
    problem = {Unit("attention", (0,)): [Option("int4", SCHEME, 100, 0.9), Option("int8", SCHEME, 300, 0.0)],
               Unit("head"): [Option("int4", SCHEME, 10, 0.1), Option("int8", SCHEME, 20, 0.0)]}  # fmt: skip
    assert [option.nbytes for option in choose(problem, Target(max_kl=0.15), 0).values()] == [300, 10]
    assert [option.nbytes for option in choose(problem, Target(max_bytes=312), 0).values()] == [300, 10]


def test_mixes_follow_what_was_measured() -> None:
    """The mix diverges twice as much as its parts add up to: the second one knows."""
    problem = {Unit("attention", (place,)): steps(0.5, 0.2, 0.0) for place in range(4)}
    target = Target(max_kl=1.0)
    tried = search(problem, target, 0, lambda choice: 2 * total_kl(choice))
    assert tried[0].measured_kl > 1.0
    found = best(tried, target)
    assert found is not None
    assert 0.5 <= found.measured_kl <= 1.0
    assert found.meets(target)
    assert tried[1].predicted_kl == tried[1].measured_kl


def test_a_target_out_of_reach_gives_what_comes_nearest() -> None:
    problem = {Unit("head"): steps(0.5, 0.2)}
    tried = search(problem, Target(max_kl=0.1), 0, total_kl)
    found = best(tried, Target(max_kl=0.1))
    assert found is not None
    assert (found.measured_kl, found.meets(Target(max_kl=0.1))) == (0.2, False)
    small = best(search(problem, Target(max_bytes=50), 0, total_kl), Target(max_bytes=50))
    assert small is not None
    assert small.nbytes == 100
    assert not small.meets(Target(max_bytes=50))


def test_without_a_budget_there_is_no_mix() -> None:
    problem = {Unit("head"): steps(0.5)}
    assert search(problem, Target(max_kl=0.1), 0, lambda _: None) == []
    assert best([], Target(math.inf)) is None
