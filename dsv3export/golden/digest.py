"""What is kept of a value inside the model: a few numbers for each token, enough to see that it has changed.

A token's row x [D] is kept as its norm and its projections P x / sqrt(r), P being r rows of D signs. The mean of
|P (x - y)|^2 / r over the signs is |x - y|^2 (Johnson and Lindenstrauss), so that the distance of two rows is known
without either; how well depends on r.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3export.golden.document import Settings

Array = NDArray[Any]
Floats = NDArray[np.float64]


class RowErrors(NamedTuple):
    """Of each token: its error relative to the row's size, and the column where it is largest, with both values.

    A row that is smaller than the average one is divided by the average one, as in `compare.difference`. Infinite
    where only one of both is finite.
    """

    error: Floats
    column: NDArray[np.int64]
    expected: Floats
    got: Floats


def digest(rows: Array, settings: Settings) -> dict[str, NDArray[np.float32]]:
    """What is kept of a value [S, D], by the last part of its arrays' names."""
    if settings.digest == "full":
        return {"values": rows.astype(np.float32)}
    exact = rows.astype(np.float64)
    kept = {"norm": _norms(exact).astype(np.float32)}
    if settings.digest == "projections":
        signs = _signs(settings.seed, exact.shape[1], settings.projections)
        kept["projections"] = (exact @ signs / np.sqrt(settings.projections)).astype(np.float32)
    return kept


def digest_errors(expected: dict[str, Array], rows: Array, settings: Settings) -> RowErrors:
    """How far a value [S, D] is from what was kept of another one."""
    with np.errstate(invalid="ignore", over="ignore"):
        return kept_errors(expected, digest(rows, settings), settings)


def kept_errors(expected: Mapping[str, Array], got: Mapping[str, Array], settings: Settings) -> RowErrors:
    """How far apart two values are of which the same was kept."""
    name = {"full": "values", "norm": "norm", "projections": "projections"}[settings.digest]
    sizes = _norms(expected[name]) if name == "values" else expected["norm"].astype(np.float64)
    mine, others = (each[name].astype(np.float64).reshape(len(each[name]), -1) for each in (expected, got))
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.abs(others - mine)
        difference[np.isnan(difference)] = np.inf
        size = np.maximum(sizes, np.sqrt(np.square(sizes).mean()))
        error: Floats = np.where(difference.any(axis=1), _norms(difference) / size, 0.0)
    index = difference.argmax(axis=1)
    places = np.arange(len(mine)), index
    return RowErrors(error, index, mine[places], others[places])


def _norms(rows: Array) -> Floats:
    with np.errstate(over="ignore"):
        squares: Floats = np.square(rows.astype(np.float64)).sum(axis=1)
    norms: Floats = np.sqrt(squares)
    return norms


@lru_cache(maxsize=8)
def _signs(seed: int, width: int, count: int) -> Floats:
    """[width, count] of -1 and 1, from the bits of SHAKE-256: the same for every program that reads a golden."""
    stream = hashlib.shake_256(f"dsv3export golden {seed} {width} {count}".encode()).digest(-(-width * count // 8))
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=width * count)
    signs: Floats = bits.reshape(width, count).astype(np.float64) * 2 - 1
    return signs
