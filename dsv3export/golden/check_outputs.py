"""A model's next-token distributions against a golden: of the prompts, and of the continuations one token at a time.

The model is led along the golden's continuation whatever it would have said itself, so that every step is compared. A
step at which it would have said another token is a fault only if the golden was sure enough of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dsv3export.golden.document import Prompt
from dsv3export.golden.file import Golden
from dsv3export.golden.outputs import Batching, Rows, run_prompts
from dsv3export.golden.results import Measurement, Place
from dsv3export.golden.top_logits import (
    DistributionErrors,
    TopLogits,
    distribution_errors,
    kept_distribution_errors,
    log_sum_exp,
)
from dsv3export.progress import Progress
from dsv3export.runtime.session import Logits, Session

_PARTS = ("logits", "greedy")


def output_measurements(
    golden: Golden, session: Session, batching: Batching | None, progress: Progress
) -> Iterator[Measurement]:
    """All metrics of logits and continuation, prompt by prompt."""
    document = golden.document
    prompts = [prompt.ids for prompt in document.prompts]
    found = [_Prompt(golden, number) for number in range(len(prompts))]
    progress.start("prompts", sum(len(ids) + document.settings.new_tokens for ids in prompts), "tokens")

    def follow(prompt: int, step: int, logits: Logits) -> int:
        return document.prompts[prompt].greedy[step]

    for rows in run_prompts(session, prompts, document.settings.new_tokens, follow, batching):
        found[rows.prompt].add(rows)
        progress.advance(len(rows.logits))
    progress.finish()
    for prompt in found:
        yield from prompt.measurements()


def recorded_measurements(golden: Golden, other: Golden) -> Iterator[Measurement]:
    """The same of another golden of the same prompts and settings.

    It has gone on along its own continuations: behind the first token that is another one they cannot be compared.
    """
    kept = {part: kept_logits(other, part) for part in _PARTS}
    for number, prompt in enumerate(other.document.prompts):
        found = _Prompt(golden, number)
        found.add_recorded(kept, prompt)
        yield from found.measurements()


def kept_logits(golden: Golden, part: str) -> TopLogits:
    """The golden's rows of a part, of all prompts."""
    arrays = golden.arrays
    return TopLogits(arrays.get(f"{part}.ids"), arrays[f"{part}.values"], arrays[f"{part}.total"])


@dataclass
class _Worst:
    """Of one kind of rows: what is largest, and where."""

    part: str
    error: float = 0.0
    kl: float = 0.0
    kl_sum: float = 0.0
    rows: int = 0
    same: int = 0
    error_place: Place | None = None
    kl_place: Place | None = None

    def add(self, start: int, errors: DistributionErrors) -> None:
        self.rows += len(errors.error)
        self.same += int(errors.same.sum())
        self.kl_sum += float(errors.kl.sum())
        row = int(errors.error.argmax())
        if self.error_place is None or errors.error[row] > self.error:
            self.error, self.error_place = float(errors.error[row]), _place(start, errors, row)
        row = int(errors.kl.argmax())
        if self.kl_place is None or errors.kl[row] > self.kl:
            self.kl, self.kl_place = float(errors.kl[row]), _place(start, errors, row)


@dataclass
class _Prompt:
    """What is seen of one prompt."""

    golden: Golden
    number: int
    nll: float = 0.0
    margin: float = 0.0
    moved: float = 0.0
    ties: list[str] = field(default_factory=list)
    margin_place: Place | None = None
    worst: dict[str, _Worst] = field(default_factory=lambda: {part: _Worst(part) for part in _PARTS})

    def __post_init__(self) -> None:
        document = self.golden.document
        tokens = sum(len(prompt.ids) for prompt in document.prompts[: self.number])
        self._first = {"logits": tokens, "greedy": self.number * document.settings.new_tokens}
        self._prompt = document.prompts[self.number]
        self._kept = {part: kept_logits(self.golden, part) for part in _PARTS}

    def add(self, rows: Rows) -> None:
        first = self._first[rows.part] + rows.start
        kept = self._kept[rows.part].rows(slice(first, first + len(rows.logits)))
        errors = distribution_errors(kept, rows.logits)
        self.worst[rows.part].add(rows.start, errors)
        if rows.part == "logits":
            self._add_cost(rows)
        else:
            finite = bool(np.isfinite(rows.logits).all())
            self._add_step(rows.start, int(rows.logits[0].argmax()), finite, kept, float(errors.moved[0]))

    def add_recorded(self, others: dict[str, TopLogits], recorded: Prompt) -> None:
        """All rows at once of another golden's prompt."""
        mine = self._prompt.greedy
        apart = next((step for step, token in enumerate(recorded.greedy) if token != mine[step]), len(mine) - 1)
        for part, count in (("logits", len(self._prompt.ids)), ("greedy", apart + 1)):
            place = slice(self._first[part], self._first[part] + count)
            kept = self._kept[part].rows(place)
            errors = kept_distribution_errors(kept, others[part].rows(place))
            self.worst[part].add(0, errors)
            for step in range(count if part == "greedy" else 0):
                row = kept.rows(slice(step, step + 1))
                self._add_step(step, recorded.greedy[step], True, row, float(errors.moved[step]))
        self.nll = recorded.nll

    def measurements(self) -> Iterator[Measurement]:
        logits, greedy = (self.worst[part] for part in _PARTS)
        tokens = len(self._prompt.ids) - 1
        yield self._measured("logits.error", logits.error, logits.error_place)
        yield self._measured("logits.kl", logits.kl, logits.kl_place, logits.same / logits.rows)
        yield self._measured("logits.kl_mean", logits.kl_sum / logits.rows)
        if tokens:
            # an unlikely prompt costs more, and its cost is known less well
            change = abs(self.nll - self._prompt.nll) / max(self._prompt.nll, tokens)
            change = change if np.isfinite(change) else float("inf")
            yield self._measured("prompt.nll", change, Place(tokens, None, self._prompt.nll, self.nll))
        yield Measurement(
            "greedy.margin", self.number, None, self.margin, max(self.margin, self.moved), self.margin_place,
            len(self.ties), "; ".join(self.ties),
        )  # fmt: skip
        yield self._measured("greedy.error", greedy.error, greedy.error_place)
        yield self._measured("greedy.kl", greedy.kl, greedy.kl_place, greedy.same / greedy.rows)

    def _measured(
        self, metric: str, value: float, place: Place | None = None, agreement: float | None = None
    ) -> Measurement:
        return Measurement(metric, self.number, None, value, value, place, agreement=agreement)

    def _add_cost(self, rows: Rows) -> None:
        """Of the prompt's own next tokens."""
        targets = np.array(self._prompt.ids[rows.start + 1 : rows.start + 1 + len(rows.logits)], np.int64)
        self.nll += prompt_cost(rows.logits[: len(targets)], targets)

    def _add_step(self, step: int, got: int, finite: bool, kept: TopLogits, moved: float) -> None:
        self.moved = max(self.moved, moved)
        mine = self._prompt.greedy[step]
        if mine == got and finite:
            return
        margin, exact = _margin(kept, got)
        if not finite:
            margin = float("inf")
        relation = "" if exact else "at least "
        self.ties.append(f"step {step}: {got} for {mine} across {relation}{margin:.3g} nats")
        if margin >= self.margin:
            self.margin, self.margin_place = margin, Place(step, None, mine, got)


def prompt_cost(logits: Logits, targets: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
    """Sum of -ln p of `targets` [n] under logits [n, V], in float64."""
    if not len(targets):
        return 0.0
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return float((log_sum_exp(logits) - chosen).sum())


def _margin(kept: TopLogits, token: int) -> tuple[float, bool]:
    """By how much a golden's row prefers its likeliest token to another; and whether that is all, or at least that."""
    log_p = kept.log_p[0]
    if kept.ids is None:
        return float(log_p.max() - log_p[token]), True
    found = np.flatnonzero(kept.ids[0] == token)
    return float(log_p[0] - log_p[found[0] if len(found) else -1]), bool(len(found))


def _place(start: int, errors: DistributionErrors, row: int) -> Place:
    return Place(start + row, int(errors.token[row]), float(errors.expected[row]), float(errors.got[row]))
