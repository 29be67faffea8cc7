"""A check's cases in words, and in the groups in which reports show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsv3export.golden.results import Case, CheckResult


@dataclass(frozen=True)
class Group:
    """The cases of one layer, or of one family of metrics outside of the layers, for one prompt.

    Attributes:
        name: ``layers.3``, ``layers.3.mlp.gate``, ``logits``, ``greedy``, ...
        prompt: None for what is measured over all prompts.
    """

    name: str
    prompt: int | None
    cases: tuple[Case, ...]

    @property
    def failures(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.failed)


def groups(result: CheckResult) -> list[Group]:
    """In the order in which a model computes."""
    found: dict[tuple[str, int | None], list[Case]] = {}
    for case in result.cases:
        name = case.measured.layer or case.measured.metric.partition(".")[0]
        found.setdefault((name, case.measured.prompt), []).append(case)
    return [Group(name, prompt, tuple(cases)) for (name, prompt), cases in found.items()]


def case_text(case: Case) -> str:
    """One line: what, how much, where, and both values."""
    measured = case.measured
    text = f"{case.name} {measured.value:.3g}, bound {case.bound:.3g}"
    place = place_text(case)
    return f"{text}; {place}" if place else text


def case_texts(cases: Iterable[Case]) -> str:
    """A line for each."""
    return "\n".join(case_text(case) for case in cases)


def place_text(case: Case) -> str:
    """``prompt 2, position 7, index 3: expected 0.5, got 0.7``."""
    measured, place = case.measured, case.measured.place
    parts = [] if measured.prompt is None else [f"prompt {measured.prompt}"]
    if place is not None:
        parts.append(f"{'step' if measured.metric.startswith('greedy') else 'position'} {place.position}")
        if place.index is not None:
            parts.append(f"{'token' if measured.layer is None else 'index'} {place.index}")
    text = ", ".join(parts)
    if place is not None:
        text = f"{text}: expected {_shown(place.expected)}, got {_shown(place.got)}"
    return f"{text} ({measured.note})" if measured.note else text


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
