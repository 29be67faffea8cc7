"""Next-token distributions as a golden keeps them: the likeliest tokens' logits, and what normalises them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
# The share of all tokens that are not kept is a difference of sums near 1: what it is below this, it is not known.
_LEAST_REST = 1e-9


@dataclass(frozen=True)
class TopLogits:
    """Rows of logits.

    Attributes:
        ids: int32 [n, k], the likeliest token first, of equal ones the lower; None where all tokens are kept.
        values: float32 [n, k], their logits.
        total: float64 [n], ln of the sum of exp over the whole vocabulary.
    """

    ids: Array | None
    values: Array
    total: Array

    @property
    def likeliest(self) -> Array:
        """[n], token ids."""
        likeliest: Array = self.values.argmax(axis=1) if self.ids is None else self.ids[:, 0]
        return likeliest

    @property
    def log_p(self) -> Floats:
        """[n, k], in nats."""
        return self.values.astype(np.float64) - self.total[:, None]

    def rows(self, place: slice) -> TopLogits:
        """Some of the rows."""
        return TopLogits(None if self.ids is None else self.ids[place], self.values[place], self.total[place])


class DistributionErrors(NamedTuple):
    """Of each row, in nats.

    Attributes:
        error: Root of the mean squared difference of the kept tokens' log-probabilities.
        kl: KL(expected || got), the tokens that were not kept counting as one: at most that of all.
        token: The kept token with the largest difference; `expected` and `got` are its log-probabilities.
        moved: The largest change of the distance between the likeliest kept token and the second.
        same: Whether the likeliest token is the same one; never where a logit is no finite number.
    """

    error: Floats
    kl: Floats
    token: NDArray[np.int64]
    expected: Floats
    got: Floats
    moved: Floats
    same: NDArray[np.bool_]


def top_logits(logits: Array, top: int) -> TopLogits:
    """The `top` likeliest of each row of logits [n, V]; all in the order of the vocabulary for 0."""
    total = log_sum_exp(logits)
    if not top:
        return TopLogits(None, logits.astype(np.float32), total)
    # stable, so that equal logits are in the same order on every machine
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return TopLogits(order.astype(np.int32), np.take_along_axis(logits, order, axis=1).astype(np.float32), total)


def log_sum_exp(logits: Array) -> Floats:
    """[n], of each row."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        largest = wide.max(axis=1)
        total: Floats = largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1))
    return total


def distribution_errors(expected: TopLogits, logits: Array) -> DistributionErrors:
    """How far logits [n, V] are from the rows that were kept of others."""
    total = log_sum_exp(logits)
    chosen = logits if expected.ids is None else np.take_along_axis(logits, expected.ids.astype(np.int64), axis=1)
    with np.errstate(invalid="ignore"):
        got = chosen.astype(np.float64) - total[:, None]
    same = (expected.likeliest == logits.argmax(axis=1)) & np.isfinite(logits).all(axis=1)
    return _errors(expected, got, np.ones(got.shape, np.bool_), same)


def kept_distribution_errors(expected: TopLogits, got: TopLogits) -> DistributionErrors:
    """How far apart rows are of which as many tokens were kept.

    Of a token that only `expected` has kept, the other's log-probability is at most its least kept one: so much is the
    error at least. In the divergence it counts with the rest.
    """
    same = expected.likeliest == got.likeliest
    if expected.ids is None or got.ids is None:
        return _errors(expected, got.log_p, np.ones(got.values.shape, np.bool_), same)
    wanted, there = _by_row(expected.ids), _by_row(got.ids)
    order = np.argsort(there)
    found = order[np.minimum(np.searchsorted(there, wanted, sorter=order), len(order) - 1)]
    known = (there[found] == wanted).reshape(expected.ids.shape)
    theirs = got.log_p
    at_most = np.minimum(expected.log_p, theirs.min(axis=1)[:, None])
    return _errors(expected, np.where(known, theirs.ravel()[found].reshape(known.shape), at_most), known, same)


def _by_row(ids: Array) -> NDArray[np.int64]:
    """Token ids [n, k] as numbers [n k] that no two rows share."""
    return (np.arange(len(ids), dtype=np.int64)[:, None] * 2**32 + ids).ravel()


def _errors(
    expected: TopLogits, got: Floats, known: NDArray[np.bool_], same: NDArray[np.bool_]
) -> DistributionErrors:  # fmt: skip
    mine = expected.log_p
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - mine)
        difference[np.isnan(difference)] = np.inf
        error = np.sqrt(np.square(difference).mean(axis=1))
        kl = _divergence(mine, got, known, expected.ids is None)
    column = difference.argmax(axis=1)
    row = np.arange(len(mine))
    token = column if expected.ids is None else expected.ids[row, column].astype(np.int64)
    return DistributionErrors(error, kl, token, mine[row, column], got[row, column], _moved(mine, got), same)


def _divergence(mine: Floats, got: Floats, known: NDArray[np.bool_], complete: bool) -> Floats:
    kl: Floats = (np.exp(mine) * (mine - got)).sum(axis=1, where=known)
    if not complete:
        rest, others = (np.maximum(1 - np.exp(each).sum(axis=1, where=known), _LEAST_REST) for each in (mine, got))
        kl += rest * np.log(rest / others)
    return np.where(np.isnan(kl), np.inf, np.maximum(kl, 0.0))


def _moved(mine: Floats, got: Floats) -> Floats:
    if mine.shape[1] < 2:
        return np.zeros(len(mine))
    best, second = np.argsort(-mine, axis=1, kind="stable")[:, :2].T
    row = np.arange(len(mine))
    with np.errstate(invalid="ignore"):
        moved = np.abs((mine[row, best] - mine[row, second]) - (got[row, best] - got[row, second]))
    return np.where(np.isnan(moved), np.inf, moved)
