"""The greedy choice beside a search of everything, and the mixes that are tried one after the other."""

from __future__ import annotations

import math
from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from dsv3export.recipe import Scheme
from dsv3export.sensitivity.search import (
    Choice,
    Option,
    Target,
    best,
    choose,
    convex_hull,
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


@given(options)
def test_nothing_betters_what_is_on_the_hull(given: list[Option]) -> None:
    hull = convex_hull(given)
    assert [each.nbytes for each in hull] == sorted({each.nbytes for each in hull})
    for option in given:
        for a, b in pairwise(hull):
            if a.nbytes <= option.nbytes <= b.nbytes:
                share = (option.nbytes - a.nbytes) / (b.nbytes - a.nbytes)
                assert option.kl >= a.kl + share * (b.kl - a.kl) - 1e-9
        assert option.kl >= hull[-1].kl
        assert option.nbytes > hull[0].nbytes or option.kl >= hull[0].kl


@given(problem=problems, max_kl=st.floats(1e-3, 2))
def test_a_bound_on_divergence_is_met_where_it_can_be(problem: Problem, max_kl: float) -> None:
    found = choose(problem, Target(max_kl=max_kl), 10)
    within = [each for each in every_choice(problem) if total_kl(each) <= max_kl]
    if not within:
        assert total_kl(found) <= min(map(total_kl, every_choice(problem))) + 1e-9
        return
    assert total_kl(found) <= max_kl
    # A greedy choice along hulls is off by less than one unit's step.
    step = max(max(o.nbytes for o in each) - min(o.nbytes for o in each) for each in problem.values())
    assert total_bytes(found, 10) <= min(total_bytes(each, 10) for each in within) + step


@given(problem=problems, room=st.integers(0, 2000))
def test_a_bound_on_bytes_is_kept(problem: Problem, room: int) -> None:
    least = min(total_bytes(each, 7) for each in every_choice(problem))
    found = choose(problem, Target(max_bytes=least + room), 7)
    assert total_bytes(found, 7) <= least + room
    if room == 2000 * len(problem):
        assert total_kl(found) == min(map(total_kl, every_choice(problem)))


def steps(*kls: float) -> list[Option]:
    """From few bytes to many."""
    return [Option("int8", SCHEME, 100 * (place + 1), kl) for place, kl in enumerate(kls)]


def test_what_was_not_needed_is_taken_back() -> None:
    """The best byte is spent first, on `b`; then `a` is needed, which suffices alone."""
    problem = {Unit("attention", (0,)): [Option("int8", SCHEME, 100, 0.9), Option("int8", SCHEME, 300, 0.0)],
               Unit("head"): [Option("int8", SCHEME, 10, 0.1), Option("int8", SCHEME, 20, 0.0)]}  # fmt: skip
    found = choose(problem, Target(max_kl=0.15), 0)
    assert [option.nbytes for option in found.values()] == [300, 10]


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
