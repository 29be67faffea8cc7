"""Errors of a value, against plain numpy over all prompts at once."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dsv3export.compare.difference import ULP_BINS, Coordinate, Difference, Summary

Array = NDArray[Any]
shapes = st.tuples(st.integers(1, 6), st.integers(1, 5))
numbers = st.floats(-1e6, 1e6, width=32)


def summary_of(*prompts: tuple[Array, Array], tolerance: float = math.inf) -> Summary:
    difference = Difference(tolerance)
    for prompt, (expected, got) in enumerate(prompts):
        difference.add(prompt, expected, got)
    return difference.summary()


@given(data=st.data(), shape=shapes)
def test_prompts_add_up(data: st.DataObject, shape: tuple[int, int]) -> None:
    arrays = [data.draw(hnp.arrays(np.float32, shape, elements=numbers)) for _ in range(4)]
    found = summary_of((arrays[0], arrays[1]), (arrays[2], arrays[3]))
    e, g = (np.concatenate(pair).astype(np.float64) for pair in ((arrays[0], arrays[2]), (arrays[1], arrays[3])))
    assert found.count == e.size
    assert found.max_abs == np.abs(g - e).max()
    assert found.mean_abs == pytest.approx(np.abs(g - e).mean())
    norm = np.linalg.norm(e)
    if norm > 1e-30:
        assert found.relative == pytest.approx(np.linalg.norm(g - e) / norm)
        if np.linalg.norm(g) > 1e-30:
            assert found.cosine == pytest.approx((e * g).sum() / norm / np.linalg.norm(g))
    assert sum(found.ulps) == e.size
    assert len(found.by_position) == shape[0]


@given(hnp.arrays(np.float32, shapes, elements=numbers))
def test_equal_values_have_no_error(values: Array) -> None:
    found = summary_of((values, values.copy()), tolerance=0.0)
    assert (found.max_abs, found.relative, found.worst_row, found.first_bad) == (0, 0, 0, None)
    assert found.snr_db == math.inf
    assert found.ulps[0] == values.size


def test_the_first_bad_row_is_named_and_the_worst_number_too() -> None:
    e = np.ones((3, 4))
    g = e.copy()
    g[1, 2], g[2, 0] = 1.5, -8.0
    found = summary_of((e, e), (e, g), tolerance=0.1)
    assert found.first_bad == Coordinate(prompt=1, position=1, index=2, expected=1.0, got=1.5)
    assert found.worst == Coordinate(prompt=1, position=2, index=0, expected=1.0, got=-8.0)
    assert found.worst_row == pytest.approx(9 / 2)
    assert found.by_position == pytest.approx([0, 0.5 / math.sqrt(8), 9 / math.sqrt(8)])


def test_a_small_row_is_measured_by_the_average_one() -> None:
    """Rounding that is small for the others is no fault in a row that happens to be almost zero."""
    e = np.array([[1.0, 0], [1.0, 0], [1e-9, 0]])
    g = e + np.array([[0, 0], [0, 0], [1e-9, 0]])
    assert summary_of((e, g)).worst_row == pytest.approx(1e-9 / math.sqrt(2 / 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_infinitely_wrong(bad: float) -> None:
    e, g = np.ones((2, 3)), np.ones((2, 3))
    g[1, 1] = bad
    found = summary_of((e, g), tolerance=1e9)
    assert found.max_abs == found.relative == found.worst_row == math.inf
    assert found.snr_db == -math.inf
    assert found.first_bad is not None
    assert (found.first_bad.position, found.first_bad.index) == (1, 1)
    assert summary_of((g, g)).max_abs == 0


def test_positions_that_do_not_count() -> None:
    e, g = np.ones((3, 2)), np.full((3, 2), 2.0)
    difference = Difference(0.0)
    difference.add(0, e, g, np.array([False, False, True]))
    found = difference.summary()
    assert (found.count, found.by_position[:2]) == (2, (0.0, 0.0))
    assert found.first_bad is not None
    assert found.first_bad.position == 2
    difference = Difference()
    difference.add(0, e, g, np.zeros(3, np.bool_))
    assert difference.summary().count == 0


def test_distances_in_units_of_the_last_place() -> None:
    """From 1 up, bfloat16 has steps of 2^-7; below 0 the same, and from the least number to its negative it is two."""
    least = float(ml_dtypes.finfo(ml_dtypes.bfloat16).smallest_subnormal)
    pairs = [(1, 1), (1, 1 + 2**-7), (1, 1 + 2**-6), (-1, -1 - 3 * 2**-7), (least, -least), (0.0, -0.0), (1, 2), (1, 8)]
    e, g = (np.array([[float(pair[side])] for pair in pairs], np.float32) for side in (0, 1))
    # 0 1 2 3 2 0 128 and 384 steps
    expected = dict.fromkeys(range(len(ULP_BINS) + 1), 0) | {0: 2, 1: 1, 2: 2, 3: 1, 8: 1, 9: 1}
    assert summary_of((e, g)).ulps == tuple(expected.values())
