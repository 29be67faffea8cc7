"""Profiles: bounds that follow from noise."""

from __future__ import annotations

import pytest

from dsv3export.errors import RequestError
from dsv3export.golden.document import Profile
from dsv3export.golden.profile import find_profile, make_profile, rounded_up, shipped
from dsv3export.golden.results import EXACT, METRICS

NAMES = {"fp32", "bf16", "fp8", "int8", "int4", "cache-bf16", "cache-f16", "cache-fp8"}


@pytest.mark.parametrize(("metric", "factor"), [("logits.error", 4), ("layers.error", 4), ("logits.kl_mean", 16)])
def test_a_bound_is_the_largest_noise_times_the_margin(metric: str, factor: int) -> None:
    profile = make_profile("mine", [(metric, value / 1000) for value in range(1, 101)], ["a run"], 4)
    (bound,) = profile.bounds
    assert (bound.largest, bound.p99, bound.median, bound.values) == (0.1, 0.099, 0.05, 100)
    assert profile.bound(metric) == bound.bound == factor / 10
    assert profile.bound("text.nll") is None


def test_no_noise_leaves_the_last_places_of_float32() -> None:
    assert make_profile("mine", [("logits.kl", 0.0)], ["a run"], 4).bound("logits.kl") == pytest.approx(2**-20, rel=0.1)


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.1234, 0.13), (5.0, 5.0), (991.0, 1000.0), (1.1e-9, 1.1e-9), (0.0, 0.0)]
)
def test_rounding_is_upwards(value: float, rounded: float) -> None:
    assert rounded_up(value) == pytest.approx(rounded, rel=1e-12)


def test_shipped_bounds_follow_from_the_noise_beside_them() -> None:
    """No bound is chosen by hand: each is its own noise times the margin."""
    assert {profile.name for profile in shipped()} == NAMES | {f"same-{name}" for name in NAMES}
    for profile in shipped():
        assert {bound.metric for bound in profile.bounds} == METRICS.keys() - {EXACT}
        assert len(profile.runs) == len(set(profile.runs)) >= 12
        for bound in profile.bounds:
            made = make_profile("again", [(bound.metric, bound.largest)], (), profile.margin)
            assert bound.bound == made.bounds[0].bound
            assert 0 <= bound.median <= bound.p99 <= bound.largest


def test_the_same_arithmetic_is_held_more_closely() -> None:
    by_name = {profile.name: profile for profile in shipped()}
    for name in ("int8", "int4"):
        mine, same = (by_name[each].bound("layers.median") for each in (name, f"same-{name}"))
        assert mine is not None
        assert same is not None
        assert same < mine / 2


@pytest.mark.parametrize("prefix", ["", "same-"])
def test_a_cache_format_adds_its_error(prefix: str) -> None:
    profile, where = find_profile(f"{prefix}int4+cache-fp8", ())
    assert "added up" in where
    parts = [find_profile(f"{prefix}{part}", ())[0] for part in ("int4", "cache-fp8")]
    for bound in profile.bounds:
        each = [part.bound(bound.metric) for part in parts]
        power = 2 if "kl" in bound.metric else 1
        roots = [value ** (1 / power) for value in each if value]
        assert bound.bound == pytest.approx(sum(roots) ** power, rel=0.1)


def test_a_golden_s_own_profile_goes_before() -> None:
    own = Profile("int4", 2, ("mine",), ())
    assert find_profile("int4", [own]) == (own, "measured for this golden")
    with pytest.raises(RequestError, match="int3"):
        find_profile("int3", [own])
