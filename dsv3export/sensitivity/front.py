"""All choices that can be best: for each number of bytes, the least divergence that they buy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

U = TypeVar("U")
MOST_CHOICES = 4096


@dataclass(frozen=True)
class Front(Generic[U]):
    """Choices of which none is bettered by another in both: bytes ascending, divergence descending.

    Attributes:
        nbytes: int64 [choices].
        kl: float64 [choices].
        steps: For each unit the choice that each was made of, and the option that the unit has in it.
    """

    nbytes: NDArray[np.int64]
    kl: NDArray[np.float64]
    steps: tuple[tuple[U, NDArray[np.int64], NDArray[np.int64]], ...]

    def choice(self, place: int) -> dict[U, int]:
        """The option that each unit has in a choice, by its number."""
        found: dict[U, int] = {}
        for unit, parents, options in reversed(self.steps):
            found[unit] = int(options[place])
            place = int(parents[place])
        return dict(reversed(found.items()))


def pareto_front(options: Mapping[U, Sequence[tuple[int, float]]], most: int = MOST_CHOICES) -> Front[U]:
    """The front of all choices of one (bytes, divergence) for each unit, both added up.

    Units join one at a time: every choice so far with every option of the unit, less those that another one betters.
    That is exact as long as no more than `most` are left, and off by a `most`-th of the bytes at each unit beyond.
    """
    nbytes: NDArray[np.int64] = np.zeros(1, np.int64)
    kl: NDArray[np.float64] = np.zeros(1)
    steps = []
    for unit, each in options.items():
        sizes, costs = np.array([size for size, _ in each], np.int64), np.array([cost for _, cost in each], np.float64)
        all_bytes, all_kl = (nbytes[:, None] + sizes).ravel(), (kl[:, None] + costs).ravel()
        kept = _thinned(_unbettered(all_bytes, all_kl), all_bytes, most)
        nbytes, kl = all_bytes[kept], all_kl[kept]
        steps.append((unit, kept // len(each), kept % len(each)))
    return Front(nbytes, kl, tuple(steps))


def _unbettered(nbytes: NDArray[np.int64], kl: NDArray[np.float64]) -> NDArray[np.int64]:
    order = np.lexsort((kl, nbytes))
    least = np.minimum.accumulate(kl[order])
    better = np.concatenate([[True], kl[order][1:] < least[:-1]])
    return np.asarray(order[better], np.int64)


def _thinned(kept: NDArray[np.int64], nbytes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """One of each `most`-th of the range of bytes: that of least divergence, which is the last; and the very first."""
    if len(kept) <= most:
        return kept
    sizes = nbytes[kept] - nbytes[kept[0]]
    part = sizes * (most - 1) // (int(sizes[-1]) + 1)
    last = np.concatenate([part[1:] != part[:-1], [True]])
    last[0] = True
    return np.asarray(kept[last], np.int64)
