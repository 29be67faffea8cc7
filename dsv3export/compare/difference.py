"""The error of one value over all positions of all prompts, accumulated a prompt at a time in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Upper bounds of the bins of distances in units of the last place of bfloat16; the last bin has the rest.
ULP_BINS = (0, 1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Coordinate:
    """A place in a value, and what both sides have there.

    Attributes:
        prompt: The prompt's number.
        position: The token's position in it.
        index: The place within the token's row.
        expected, got: Both values; not finite where they are not.
    """

    prompt: int
    position: int
    index: int
    expected: float
    got: float


@dataclass(frozen=True)
class Summary:
    """What was seen of one value.

    Attributes:
        count: Numbers compared.
        max_abs, mean_abs: Of |got - expected|.
        relative: ||got - expected|| / ||expected|| over everything.
        worst_row: The largest of the same over one token's row; a row that is smaller than the average one is divided
            by the average one, as rounding of a sum does not shrink with the sum.
        cosine: Of the angle between both.
        snr_db: 20 * log10(1 / relative), in dB; infinite for equal values.
        ulps: How many numbers are how far apart in units of the last place of bfloat16, by `ULP_BINS` and the rest.
        by_position: `relative` for each position.
        worst: Where |got - expected| is largest.
        first_bad: The largest error in the first row that is beyond the tolerance, in the order of prompts and
            positions; None where all are within it.
    """

    count: int
    max_abs: float
    mean_abs: float
    relative: float
    worst_row: float
    cosine: float
    snr_db: float
    ulps: tuple[int, ...]
    by_position: tuple[float, ...]
    worst: Coordinate | None
    first_bad: Coordinate | None


class Difference:
    """Accumulates; `summary` at the end.

    Args:
        tolerance: How large `worst_row` may be.
    """

    def __init__(self, tolerance: float = math.inf) -> None:
        self._tolerance = tolerance
        self._count, self._sum_abs, self._product = 0, 0.0, 0.0
        self._worst_row = 0.0
        self._worst: Coordinate | None = None
        self._first_bad: Coordinate | None = None
        self._ulps = np.zeros(len(ULP_BINS) + 1, np.int64)
        # By position: squares of the error, of the expected and of the other values.
        self._squares: Array = np.zeros((3, 0))

    def add(self, prompt: int, expected: Array, got: Array, kept: NDArray[np.bool_] | None = None) -> None:
        """A prompt's values, [S, numbers of a token] each.

        Args:
            kept: Which of the S positions count; all by default.
        """
        e, g = expected, got
        positions = np.arange(len(e)) if kept is None else np.flatnonzero(kept)
        if not len(positions) or not e.size:
            return
        self._count_ulps(e[positions], g[positions])
        e, g = e[positions].astype(np.float64), g[positions].astype(np.float64)
        difference = _difference(e, g)
        squares = np.stack([_square_sum(difference), _square_sum(e), _square_sum(g)])
        self._add_positions(positions, squares)
        self._count += e.size
        self._sum_abs += float(np.abs(difference).sum())
        self._product += float((e * g).sum())
        self._note(prompt, positions, e, g, np.abs(difference), _row_errors(squares))

    def summary(self) -> Summary:
        errors, expected, got = self._squares.sum(axis=1)
        relative = _ratio(math.sqrt(errors), math.sqrt(expected))
        norms = math.sqrt(expected) * math.sqrt(got)
        return Summary(
            count=self._count,
            max_abs=_distance(self._worst),
            mean_abs=self._sum_abs / self._count if self._count else 0.0,
            relative=relative,
            worst_row=self._worst_row,
            cosine=self._product / norms if norms else float(errors == 0),
            snr_db=-20 * math.log10(relative) if 0 < relative < math.inf else math.inf if not relative else -math.inf,
            ulps=tuple(int(count) for count in self._ulps),
            by_position=tuple(_ratio(math.sqrt(d), math.sqrt(e)) for d, e, _ in self._squares.T),
            worst=self._worst,
            first_bad=self._first_bad,
        )

    def _add_positions(self, positions: NDArray[np.int64], squares: Array) -> None:
        missing = int(positions[-1]) + 1 - self._squares.shape[1]
        if missing > 0:
            self._squares = np.pad(self._squares, ((0, 0), (0, missing)))
        self._squares[:, positions] += squares

    def _note(
        self, prompt: int, positions: NDArray[np.int64], e: Array, g: Array, distance: Array, errors: Array
    ) -> None:
        """The worst row, the worst number and the first bad one."""
        self._worst_row = max(self._worst_row, float(errors.max()))
        row, index = np.unravel_index(int(distance.argmax()), distance.shape)
        if self._worst is None or distance[row, index] > _distance(self._worst):
            self._worst = _coordinate(prompt, positions, e, g, int(row), int(index))
        bad = np.flatnonzero(errors > self._tolerance)
        if self._first_bad is None and len(bad):
            first = int(bad[0])
            self._first_bad = _coordinate(prompt, positions, e, g, first, int(distance[first].argmax()))

    def _count_ulps(self, e: Array, g: Array) -> None:
        distance = np.abs(_ordinals(e) - _ordinals(g)).ravel()
        self._ulps += np.bincount(np.searchsorted(ULP_BINS, distance), minlength=len(self._ulps))


def _difference(e: Array, g: Array) -> Array:
    """g - e; 0 where both are the same infinity or NaN, infinite where only one is finite."""
    with np.errstate(invalid="ignore"):
        difference = g - e
    same = (e == g) | (np.isnan(e) & np.isnan(g))
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))


def _square_sum(values: Array) -> Array:
    finite: Array = np.where(np.isnan(values), 0.0, values)
    total: Array = np.square(finite).sum(axis=1)
    return total


def _row_errors(squares: Array) -> Array:
    """sqrt(error / expected) of each row, small rows by the average one."""
    errors, expected, _ = squares
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = errors / np.maximum(expected, expected.mean())
    found: Array = np.sqrt(np.where(errors == 0, 0.0, np.where(np.isnan(ratio), np.inf, ratio)))
    return found


def _coordinate(prompt: int, positions: NDArray[np.int64], e: Array, g: Array, row: int, index: int) -> Coordinate:
    return Coordinate(prompt, int(positions[row]), index, float(e[row, index]), float(g[row, index]))


def _distance(place: Coordinate | None) -> float:
    if place is None:
        return 0.0
    return float(np.abs(_difference(np.array(place.expected), np.array(place.got))))


def _ratio(numerator: float, denominator: float) -> float:
    if not numerator:
        return 0.0
    return numerator / denominator if denominator and math.isfinite(numerator) else math.inf


def _ordinals(values: Array) -> NDArray[np.int64]:
    """Neighbouring bfloat16 numbers have neighbouring ordinals; both zeros have one."""
    with np.errstate(over="ignore", invalid="ignore"):
        bits = values.astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.int64)
    magnitude = bits & 0x7FFF
    return np.where(bits & 0x8000, -magnitude, magnitude)
