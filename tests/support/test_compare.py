"""The comparison that other tests rely on must be able to fail."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.compare import assert_close, assert_op_close


def test_names_the_first_bad_coordinate_and_both_values() -> None:
    expected = np.zeros((2, 3))
    actual = expected.copy()
    actual[1, 0], actual[1, 2] = 0.5, 2.0
    with pytest.raises(AssertionError, match=r"logits\[1, 0\]: got 0.5, expected 0; 2 of 6 .* the worst by 2"):
        assert_close(actual, expected, 1e-3, "logits")


@pytest.mark.parametrize("actual", [np.full(2, np.nan), np.zeros(3), np.array([0.0, np.inf])])
def test_refuses_nan_infinity_and_another_shape(actual: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    with pytest.raises(AssertionError):
        assert_close(actual, np.zeros(2), 1.0)


def test_an_op_is_compared_relative_to_its_largest_result() -> None:
    assert_op_close(np.array([1000.01, 0.01]), np.array([1000.0, 0.0]))
    with pytest.raises(AssertionError):
        assert_op_close(np.array([1000.1, 0.0]), np.array([1000.0, 0.0]))
