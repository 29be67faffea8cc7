"""A logarithmic axis that has places for zero and for what is no finite number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MOST_DECADES = 14
_MOST_LABELS = 7


@dataclass(frozen=True)
class LogScale:
    """From a value to a coordinate.

    Attributes:
        low, high: The first and last power of ten; smaller values than 10^low lie on its line.
        zero, infinite: Whether there are values of 0 (shown one step before `low`), and infinities or NaN (one step
            after `high`).
        start, end: The coordinates of both ends.
    """

    low: int
    high: int
    zero: bool
    infinite: bool
    start: float
    end: float

    @classmethod
    def of(cls, values: Iterable[float], start: float, end: float) -> LogScale:
        """One that has a place for each of `values`, which are not negative."""
        known = list(values)
        positive = [value for value in known if 0 < value < math.inf]
        high = math.ceil(math.log10(max(positive, default=1.0)))
        low = math.floor(math.log10(min(positive, default=1.0)))
        low = max(min(low, high - 1), high - _MOST_DECADES)
        return cls(low, high, 0 in known, len(positive) < sum(value != 0 for value in known), start, end)

    @property
    def _steps(self) -> int:
        return self.high - self.low + self.zero + self.infinite

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        if not math.isfinite(value):
            return self.end
        if value <= 0:
            return self.start
        exponent = min(max(math.log10(value), self.low), self.high)
        return self._coordinate(exponent)

    def ticks(self) -> list[tuple[float, str]]:
        """(coordinate, label) of zero, of powers of ten and of infinity, as many as can be read."""
        every = -(-(self.high - self.low + 1) // _MOST_LABELS)
        found = [(self._coordinate(power), power_of_ten(power)) for power in range(self.high, self.low - 1, -every)][
            ::-1
        ]
        before = [(self.start, "0")] if self.zero else []
        after = [(self.end, "∞, NaN")] if self.infinite else []
        return [*before, *found, *after]

    def _coordinate(self, exponent: float) -> float:
        return self.start + (self.end - self.start) * (exponent - self.low + self.zero) / self._steps


def power_of_ten(exponent: int) -> str:
    """0 -> ``1``, 2 -> ``100``, -4 -> ``1e-4``."""
    return f"{10**exponent:,}" if 0 <= exponent <= 3 else f"1e{exponent}"
