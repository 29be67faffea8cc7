"""How far next-token distributions are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TOP = 5
_WORST = 20
# Tokens of text that are shown before a bad one.
_CONTEXT = 24
# Two bins a decade, in nats: from what float32 rounding makes to what no model of use does.
_KL_EDGES = tuple(float(f"{10.0 ** (half / 2):.3g}") for half in range(-24, 5))


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` numbers are from `edges[i - 1]` on and below `edges[i]`; both ends are open, NaN is in the last."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A next token: its id, what probability both sides give it, and its text where a tokenizer is at hand."""

    token: int
    expected_p: float
    got_p: float
    text: str | None = None


@dataclass(frozen=True)
class WorstToken:
    """A position where the distributions are far apart.

    Attributes:
        prompt, position: The token after which both predict.
        kl: KL(expected || got) there, in nats.
        rank: That of the expected side's likeliest token in the other one, 0 being the likeliest.
        expected, got: The likeliest token of each side.
        before: The text up to the position, its last tokens.
    """

    prompt: int
    position: int
    kl: float
    rank: int
    expected: Candidate
    got: Candidate
    before: str | None = None


@dataclass(frozen=True)
class DistributionSummary:
    """Over all positions; divergences in nats.

    Attributes:
        kl_mean, kl_max: KL(expected || got).
        js_mean: The Jensen-Shannon divergence, at most ln 2.
        top1, top5: The share of positions, 0 to 1, where both have the same likeliest token; the mean overlap of the
            five likeliest.
        worst_rank: The lowest rank (0 is the likeliest) that the expected likeliest token has in the other.
        kl_histogram: Of all positions.
        kl_by_position: The mean over the prompts that are that long.
        worst: The positions of largest KL, largest first.
    """

    positions: int
    kl_mean: float
    kl_max: float
    js_mean: float
    top1: float
    top5: float
    worst_rank: int
    kl_histogram: Histogram
    kl_by_position: tuple[float, ...]
    worst: tuple[WorstToken, ...]


class Distributions:
    """Accumulates logits, a prompt at a time."""

    def __init__(self) -> None:
        self._kl: list[Array] = []
        self._js: list[Array] = []
        self._top5: list[Array] = []
        self._ranks: list[Array] = []
        self._worst: list[WorstToken] = []

    def add(self, prompt: int, expected: Array, got: Array) -> None:
        """A prompt's logits at all its positions, [S, V] each."""
        p, q = log_softmax(expected), log_softmax(got)
        with np.errstate(invalid="ignore"):  # logits that are no numbers
            middle = np.logaddexp(p, q) - np.log(2)
        self._kl.append(kl_divergence(p, q))
        self._js.append((kl_divergence(p, middle) + kl_divergence(q, middle)) / 2)
        best = p.argmax(axis=1)
        self._ranks.append((q > q[np.arange(len(q)), best, None]).sum(axis=1))
        tops = [np.argpartition(-each, min(_TOP, each.shape[1]) - 1, axis=1)[:, :_TOP] for each in (p, q)]
        self._top5.append((tops[0][:, :, None] == tops[1][:, None, :]).any(axis=2).mean(axis=1))
        self._note_worst(prompt, p, q)

    def summary(self) -> DistributionSummary:
        kl, js, top5, ranks = (np.concatenate(each) for each in (self._kl, self._js, self._top5, self._ranks))
        return DistributionSummary(
            len(kl), float(kl.mean()), float(kl.max()), float(js.mean()),
            float((ranks == 0).mean()), float(top5.mean()), int(ranks.max()),
            _histogram(kl), _mean_by_position(self._kl), tuple(self._worst),
        )  # fmt: skip

    def _note_worst(self, prompt: int, p: Array, q: Array) -> None:
        kl, ranks = self._kl[-1], self._ranks[-1]
        for position in np.argsort(-_severity(kl), kind="stable")[:_WORST].tolist():
            expected, got = (
                Candidate(int(token), float(np.exp(p[position, token])), float(np.exp(q[position, token])))
                for token in (p[position].argmax(), q[position].argmax())
            )
            self._worst.append(WorstToken(prompt, position, float(kl[position]), int(ranks[position]), expected, got))
        self._worst.sort(key=lambda token: -float(_severity(np.array(token.kl))))
        del self._worst[_WORST:]


def with_texts(
    summary: DistributionSummary,
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    ahead: int = 0,
) -> DistributionSummary:
    """The same with the texts of the worst tokens.

    Args:
        prompts: The token ids that were compared.
        decode: Text of token ids.
        ahead: How many tokens behind its position a prediction knows, 1 for drafts.
    """
    worst = []
    for token in summary.worst:
        end = token.position + 1 + ahead
        before = prompts[token.prompt][max(0, end - _CONTEXT) : end]
        expected, got = (replace(side, text=decode([side.token])) for side in (token.expected, token.got))
        worst.append(replace(token, expected=expected, got=got, before=decode(before)))
    return replace(summary, worst=tuple(worst))


def log_softmax(logits: Array) -> Array:
    """float64 log-probabilities of each row."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_divergence(p: Array, q: Array) -> Array:
    """KL(p || q) of each row of log-probabilities, in nats; rounding is kept from making it negative."""
    found: Array = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return found


def _severity(kl: Array) -> Array:
    """For an order in which what is no number comes first."""
    return np.nan_to_num(kl, nan=np.inf, posinf=np.inf)


def _histogram(values: Array) -> Histogram:
    bins = np.searchsorted(_KL_EDGES, values, side="right")
    return Histogram(_KL_EDGES, tuple(np.bincount(bins, minlength=len(_KL_EDGES) + 1).tolist()))


def _mean_by_position(prompts: Sequence[Array]) -> tuple[float, ...]:
    length = max(len(values) for values in prompts)
    sums, counts = np.zeros(length), np.zeros(length)
    for values in prompts:
        sums[: len(values)] += values
        counts[: len(values)] += 1
    return tuple((sums / counts).tolist())
