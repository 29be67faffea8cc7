"""A check as `dsv3export diff` shows it: layer by layer, the next-token distributions, the first fault.

All errors are propagated ones, of a model that runs on its own values: a golden does not hold what it takes to run one
layer of the model on the golden's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3export.golden.document import Document
from dsv3export.golden.results import Case, CheckResult


@dataclass(frozen=True)
class LayerLine:
    """What was seen of one layer, or of one value inside it, over all prompts.

    Attributes:
        error: The case with the largest `layers.error`; None where there is none, as of a router.
        median: The largest `layers.median`.
        flips: Tokens that its router sent to other experts; `overlap` is the share of choices that are the same. None
            without a router, likewise `margin`, the largest gap across which a token went, and `weights`, the largest
            `router.weights`.
    """

    name: str
    error: Case | None
    median: float | None
    flips: int | None
    overlap: float | None
    margin: float | None
    weights: float | None


@dataclass(frozen=True)
class Agreement:
    """Next-token distributions over some positions.

    Attributes:
        kl_mean, kl_max: KL(golden || model) in nats; the mean is None for the continuation.
        top1: The share of positions with the same likeliest token.
    """

    positions: int
    kl_mean: float | None
    kl_max: float
    top1: float | None


@dataclass(frozen=True)
class FirstFault:
    """The first figure that is beyond its bound, in the order in which a model computes.

    Attributes:
        name: ``layers.3.mlp.experts``, or ``tokens``, ``logits``, ``greedy``, ``text`` for what comes out.
        prompt: None for what is measured over all of them; `position`, `index` None where there is no place.
        index: In the row of a full digest, or the projection's number; of logits the token.
        expected, got: Both sides' numbers there, or lists of what was chosen.
    """

    name: str
    metric: str
    value: float
    bound: float
    prompt: int | None
    position: int | None
    index: int | None
    expected: Any
    got: Any


@dataclass(frozen=True)
class GoldenDiff:
    """The whole comparison.

    Attributes:
        bounds: Where the profile was found.
        digest: What the golden keeps of a value: its norm, projections, or all of it (``full``).
        top: How many log-probabilities it keeps of a position, of which divergences are; 0 for all.
        prompts: The number of tokens of each.
        layers, values: By stage and by value, in the order of the graph.
        logits, continuation: Of the prompts, and of the greedy tokens after them; None where not compared.
        result: The check with every figure.
    """

    bounds: str
    digest: str
    top: int
    prompts: tuple[int, ...]
    layers: tuple[LayerLine, ...]
    values: tuple[LayerLine, ...]
    logits: Agreement | None
    continuation: Agreement | None
    first_fault: FirstFault | None
    result: CheckResult


def golden_diff(document: Document, result: CheckResult, bounds: str) -> GoldenDiff:
    """A check of the golden with that document, layer by layer; `bounds` says where the profile was found."""
    stages = {value.name: value.stage for value in document.values}
    lengths = tuple(len(prompt.ids) for prompt in document.prompts)
    steps = (document.settings.new_tokens,) * len(lengths)
    return GoldenDiff(
        bounds,
        document.settings.digest,
        document.settings.top,
        lengths,
        _lines(result, lengths, lambda name: stages[name]),
        _lines(result, lengths, lambda name: name),
        _agreement(result, "logits", lengths),
        _agreement(result, "greedy", steps),
        _first_fault(result.first_failure),
        result,
    )


def _lines(result: CheckResult, lengths: Sequence[int], key: Callable[[str], str]) -> tuple[LayerLine, ...]:
    found: dict[str, list[Case]] = {}
    for case in result.cases:
        if case.measured.layer is not None:
            found.setdefault(key(case.measured.layer), []).append(case)
    return tuple(_line(name, cases, lengths) for name, cases in found.items())


def _line(name: str, cases: Sequence[Case], lengths: Sequence[int]) -> LayerLine:
    errors, routers = _of(cases, "layers.error"), _of(cases, "router.margin")
    return LayerLine(
        name,
        max(errors, key=_value, default=None),
        _largest(_of(cases, "layers.median")),
        sum(case.measured.ties for case in routers) if routers else None,
        _mean(routers, lengths, _same),
        _largest(routers),
        _largest(_of(cases, "router.weights")),
    )


def _agreement(result: CheckResult, part: str, lengths: Sequence[int]) -> Agreement | None:
    largest = _of(result.cases, f"{part}.kl")
    if not largest:
        return None
    mean = _mean(_of(result.cases, f"{part}.kl_mean"), lengths, _value)
    return Agreement(sum(lengths), mean, max(map(_value, largest)), _mean(largest, lengths, _same))


def _first_fault(case: Case | None) -> FirstFault | None:
    if case is None:
        return None
    measured, place = case.measured, case.measured.place
    name = measured.layer or measured.metric.partition(".")[0]
    where = (None, None, None, None) if place is None else (place.position, place.index, place.expected, place.got)
    return FirstFault(name, measured.metric, measured.value, case.bound, measured.prompt, *where)


def _of(cases: Sequence[Case], metric: str) -> list[Case]:
    return [case for case in cases if case.measured.metric == metric]


def _value(case: Case) -> float:
    """What is no number counts as the largest."""
    value = case.measured.value
    return value if value == value else math.inf


def _same(case: Case) -> float | None:
    return case.measured.agreement


def _largest(cases: Sequence[Case]) -> float | None:
    return max(map(_value, cases), default=None)


def _mean(cases: Sequence[Case], lengths: Sequence[int], figure: Callable[[Case], float | None]) -> float | None:
    """Over all positions, of what is known of each prompt; `lengths` are how many each has."""
    known = [(figure(case), lengths[case.measured.prompt or 0]) for case in cases]
    weighted = [(value, count) for value, count in known if value is not None]
    total = sum(count for _, count in weighted)
    return sum(value * count for value, count in weighted) / total if total else None
