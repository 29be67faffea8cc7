"""What a check has found: one case for each metric, prompt and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# What is measured -> what it is and its unit. A right engine's figure is below the profile's bound.
METRICS = {
    "tokens": "token ids of the prompt that its text no longer gives",
    "layers.error": "largest error of a token's row, relative to the row, among tokens with the same experts",
    "layers.median": "median error of a token's row, relative to the row",
    "router.margin": "largest score gap across which a token went to another expert",
    "router.weights": "largest error of a token's router weights, relative to them, where the experts are the same",
    "logits.error": "largest error of a position's log-probabilities (root mean square), nats",
    "logits.kl": "largest KL divergence of a position, nats",
    "logits.kl_mean": "mean KL divergence of the positions, nats",
    "prompt.nll": "change of the prompt's cost, relative to it or to a nat per token",
    "greedy.margin": "largest log-probability gap across which a step of the continuation chose another token, nats",
    "greedy.error": "as logits.error, of the steps of the continuation, nats",
    "greedy.kl": "as logits.kl, of the steps of the continuation, nats",
    "text.nll": "change of the text's cost per token, nats",
    "text.chunk": "largest change of a chunk's cost per token, nats",
}
EXACT = "tokens"


@dataclass(frozen=True)
class Place:
    """Where a metric is largest: a position of the prompt or a step of the continuation, and both sides' values.

    Attributes:
        index: Within what is kept of the position: a projection, an expert, a token id; None where there is none.
        expected, got: Numbers; of choices, lists.
    """

    position: int
    index: int | None
    expected: Any
    got: Any


@dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
        prompt: None for what is measured over all of them.
        layer: The value or router inside the model; None outside.
        value: What is held against the bound.
        noise: What a bound is to be made of: `value`, but where that counts a decision, how far decisions moved.
        ties: Decisions that differ; within the bound they are ties.
        note: More about it, for people.
        agreement: The share of decisions that are the same: of a router's choices (`router.margin`), or of the
            likeliest tokens (`logits.kl`, `greedy.kl`); None of other metrics.
    """

    metric: str
    prompt: int | None
    layer: str | None
    value: float
    noise: float
    place: Place | None = None
    ties: int = 0
    note: str = ""
    agreement: float | None = None


@dataclass(frozen=True)
class Case:
    """A measurement and its bound."""

    measured: Measurement
    bound: float

    @property
    def failed(self) -> bool:
        """Also for what is no number."""
        return not self.measured.value <= self.bound

    @property
    def name(self) -> str:
        """``layers.3: layers.error``."""
        return ": ".join(part for part in (self.measured.layer, self.measured.metric) if part)


@dataclass(frozen=True)
class CheckResult:
    """A check as a whole.

    Attributes:
        golden, model: What was compared.
        profile: The name of the bounds, and where they come from.
        cases: In the order in which a model computes: tokens, layer by layer, logits, continuation, text.
        skipped: What was not compared, and why.
        notes: What differs without being a fault, such as another checkpoint.
    """

    golden: str
    model: str
    profile: str
    cases: tuple[Case, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.failed)

    @property
    def first_failure(self) -> Case | None:
        return next(iter(self.failures), None)

    @property
    def passed(self) -> bool:
        return not self.failures

    def worst(self) -> list[Case]:
        """Of each metric the case that is nearest to its bound or farthest beyond."""
        return [max(cases, key=_share) for cases in self.by_metric().values()]

    def by_metric(self) -> dict[str, Sequence[Case]]:
        """The cases of each metric, in the order of `METRICS`."""
        found: dict[str, Sequence[Case]] = {}
        for metric in METRICS:
            cases = [case for case in self.cases if case.measured.metric == metric]
            if cases:
                found[metric] = cases
        return found


def _share(case: Case) -> float:
    if not case.measured.value <= case.bound:
        return float("inf") if case.measured.value != case.measured.value else 1 + case.measured.value
    return case.measured.value / case.bound if case.bound else 0.0
