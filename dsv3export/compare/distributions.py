"""How far next-token distributions are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TOP = 5


@dataclass(frozen=True)
class DistributionSummary:
    """Over all positions; divergences in nats.

    Attributes:
        kl_mean, kl_max: KL(expected || got).
        js_mean: The Jensen-Shannon divergence, at most ln 2.
        top1, top5: The share of positions, 0 to 1, where both have the same likeliest token; the mean overlap of the
            five likeliest.
        worst_rank: The lowest rank (0 is the likeliest) that the expected likeliest token has in the other.
    """

    positions: int
    kl_mean: float
    kl_max: float
    js_mean: float
    top1: float
    top5: float
    worst_rank: int


class Distributions:
    """Accumulates logits, a prompt at a time."""

    def __init__(self) -> None:
        self._kl: list[Array] = []
        self._js: list[Array] = []
        self._top5: list[Array] = []
        self._ranks: list[Array] = []

    def add(self, expected: Array, got: Array) -> None:
        """Logits of the same positions, [S, V] each."""
        p, q = log_softmax(expected), log_softmax(got)
        with np.errstate(invalid="ignore"):  # logits that are no numbers
            middle = np.logaddexp(p, q) - np.log(2)
        self._kl.append(kl_divergence(p, q))
        self._js.append((kl_divergence(p, middle) + kl_divergence(q, middle)) / 2)
        best = p.argmax(axis=1)
        self._ranks.append((q > q[np.arange(len(q)), best, None]).sum(axis=1))
        tops = [np.argpartition(-each, min(_TOP, each.shape[1]) - 1, axis=1)[:, :_TOP] for each in (p, q)]
        self._top5.append((tops[0][:, :, None] == tops[1][:, None, :]).any(axis=2).mean(axis=1))

    def summary(self) -> DistributionSummary:
        kl, js, top5, ranks = (np.concatenate(each) for each in (self._kl, self._js, self._top5, self._ranks))
        return DistributionSummary(
            len(kl), float(kl.mean()), float(kl.max()), float(js.mean()),
            float((ranks == 0).mean()), float(top5.mean()), int(ranks.max()),
        )  # fmt: skip


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
