"""Faults that only show when sequences are computed beside each other, or go on token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3export.cli.golden.models import open_model
from dsv3export.golden import Batching, CheckResult, Golden, GoldenModel, Settings, check_golden, record_golden
from dsv3export.golden.profile import find_profile
from dsv3export.runtime.prompt_file import FilePrompt
from dsv3export.runtime.session import Session

PROMPTS = [FilePrompt(None, list(range(first, first + count))) for first, count in ((3, 9), (40, 4), (70, 13), (9, 1))]
Step = Callable[..., Any]


class Altered:
    """A session whose steps go through `step(right, ids, start, cache, slots, rows)`."""

    def __init__(self, session: Session, step: Step) -> None:
        self._session, self._step = session, step
        self.cache_layout, self.vocab_size = session.cache_layout, session.vocab_size

    def step(self, *arguments: Any) -> Any:
        return self._step(self._session.step, *arguments)


@pytest.fixture(scope="module")
def model(tiny_engine: Path) -> GoldenModel:
    return open_model(str(tiny_engine), threads=1, layers=False)


@pytest.fixture(scope="module")
def golden(model: GoldenModel) -> Golden:
    return record_golden(model, PROMPTS, Settings(digest="none", new_tokens=6), batching=Batching(1, 64))


def checked(golden: Golden, model: GoldenModel, step: Step, batching: Batching) -> CheckResult:
    assert model.session is not None
    profile, _ = find_profile("same-fp32", ())
    return check_golden(golden, replace(model, session=Altered(model.session, step)), profile, batching=batching)


def neighbour_s_rows(right: Step, ids: Any, start: Any, cache: Any, slots: range, rows: Any) -> Any:
    """In a step of several sequences the results of two change places."""
    logits = right(ids, start, cache, slots, rows)
    if len(slots) > 1:
        logits[[0, 1]] = logits[[1, 0]]
    return logits


def decoded_late(right: Step, ids: Any, start: Any, cache: Any, slots: range, rows: Any) -> Any:
    """New tokens are written one row behind their place."""
    late = start + 1 if ids.shape[1] == 1 and start.min() > 4 and start.max() + 1 < cache.capacity else start
    return right(ids, late, cache, slots, rows)


def stale_slot(right: Step, ids: Any, start: Any, cache: Any, slots: range, rows: Any) -> Any:
    """A slot's first row stays that of the sequence before."""
    kept = [view[:, :1].copy() for _, view in cache.inputs(slots)]
    used = int(cache.lengths[slots.start]) if not start.any() else 0
    logits = right(ids, start, cache, slots, rows)
    if used:
        for row, (_, view) in zip(kept, cache.inputs(slots), strict=True):
            view[:, :1] = row
    return logits


FAULTS: dict[str, tuple[Step, Batching, str]] = {
    "results of two sequences in each other's place": (neighbour_s_rows, Batching(4, 64), "greedy"),
    "decoded rows written late": (decoded_late, Batching(4, 64), "greedy"),
    "a row of the sequence before in the slot": (stale_slot, Batching(1, 2), "logits"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_cache_is_found(name: str, golden: Golden, model: GoldenModel) -> None:
    wrong, batching, family = FAULTS[name]
    first = checked(golden, model, wrong, batching).first_failure
    assert first is not None
    assert first.measured.metric.startswith(family)
    assert first.measured.value > 100 * first.bound


@pytest.mark.parametrize("batching", [Batching(1, 1), Batching(2, 5), Batching(3, 64), Batching(9, 4)])
def test_the_right_program_is_right_however_it_is_batched(
    batching: Batching, golden: Golden, model: GoldenModel
) -> None:  # fmt: skip
    result = checked(golden, model, lambda right, *arguments: right(*arguments), batching)
    assert result.passed
    assert {case.measured.prompt for case in result.cases} == set(range(len(PROMPTS)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value: float, golden: Golden, model: GoldenModel) -> None:
    def broken(right: Step, *arguments: Any) -> Any:
        logits = right(*arguments)
        logits[-1, 7] = value
        return logits

    result = checked(golden, model, broken, Batching())
    assert {case.measured.metric for case in result.failures} >= {"logits.error", "logits.kl", "greedy.margin"}
