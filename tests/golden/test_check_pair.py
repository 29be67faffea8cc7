"""Goldens against goldens that are alike but for one thing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsv3export.golden import CheckResult, Golden
from dsv3export.golden.check_pair import check_goldens
from dsv3export.golden.document import Bound, Profile
from dsv3export.golden.results import METRICS
from tests.golden.goldens import small_golden

STRICT = Profile("strict", 1.0, (), tuple(Bound(metric, 0.0, 1, 0.0, 0.0, 0.0) for metric in METRICS))


def check(golden: Golden, other: Golden) -> CheckResult:
    return check_goldens(golden, other, STRICT, label="a", other_label="b")


def altered(golden: Golden, name: str, row: int, add: float = 0.5) -> Golden:
    array = golden.arrays[name].copy()
    array[row] += array.dtype.type(add)
    return Golden(golden.document, {**golden.arrays, name: array})


@pytest.mark.parametrize("digest", ["norm", "projections", "full"])
def test_equal_ones_are_equal(digest: str) -> None:
    golden = small_golden(top=0, digest=digest)
    result = check(golden, golden)
    assert result.passed and not result.skipped
    assert {case.measured.metric for case in result.cases} == METRICS.keys() - {"tokens"}


@pytest.mark.parametrize(
    ("name", "row", "metric", "prompt"),
    [
        ("layers.0.projections", 1, "layers.error", 0),
        ("layers.0.projections", 3, "layers.error", 1),
        ("layers.1.mlp.gate.weights", 2, "router.weights", 0),
        ("logits.total", 3, "logits.error", 1),
        ("greedy.total", 2, "greedy.error", 0),
        ("text.nll", 0, "text.nll", None),
    ],
)
def test_what_differs_is_named(name: str, row: int, metric: str, prompt: int | None) -> None:
    golden = small_golden(top=0)
    first = check(golden, altered(golden, name, row)).first_failure
    assert first is not None and (first.measured.metric, first.measured.prompt) == (metric, prompt)


def test_continuations_are_compared_up_to_the_first_other_token() -> None:
    golden = small_golden(top=0)
    first, *rest = golden.document.prompts
    document = replace(golden.document, prompts=(replace(first, greedy=(4, 7, 6)), *rest))
    other = altered(Golden(document, golden.arrays), "greedy.total", 2)
    found = {case.measured.metric: case.measured for case in check(golden, other).cases if case.measured.prompt == 0}
    assert found["greedy.error"].value == 0 == found["greedy.kl"].value
    place = found["greedy.margin"].place
    assert found["greedy.margin"].ties == 1 and place is not None
    assert (place.position, place.expected, place.got) == (1, 5, 7)


def test_what_only_one_has_is_not_compared() -> None:
    golden = small_golden(top=0)
    document = replace(golden.document, values=golden.document.values[1:], text=None)
    result = check(golden, Golden(document, {name: golden.arrays[name] for name in document.arrays()}))
    assert result.passed
    assert result.skipped == (
        "layers.0: the model does not have this layer",
        "the text's perplexity: the other golden has not the same text",
    )
