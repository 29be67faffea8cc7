"""Comparing arrays: one table of tolerances, and a message that names the first bad coordinate and both values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Two right float32 programs. An op is compared relative to its largest result; a model's logits absolutely: two
# independent float32 programs of the tiny model differ by 1e-5, the mildest wrong behaviour by more than 1e-2.
OP = 2e-5
LOGITS = 2e-4
# A residual stream of size ~10 and weights of size ~1.
HIDDEN = 2e-4
ROUTER_WEIGHTS = 2e-5
# Below this distance two right float32 programs may choose different experts.
MARGIN = 1e-5


def assert_close(actual: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, what: str = "") -> None:
    """|actual - expected| <= tolerance everywhere, shapes equal; NaN is never close."""
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    difference = np.abs(a - e)
    bad = ~(difference <= tolerance)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        worst = difference[bad].max()
        raise AssertionError(
            f"{what}{list(place)}: got {a[place]:.9g}, expected {e[place]:.9g}; "
            f"{bad.sum()} of {bad.size} differ by more than {tolerance:g}, the worst by {worst:.3g}"
        )


def assert_op_close(actual: Any, expected: npt.ArrayLike, what: str = "") -> None:
    """`assert_close` by the tolerance of a float32 op, relative to the largest expected magnitude."""
    e = np.asarray(expected)
    largest = max(1.0, float(np.abs(e).max())) if e.size else 1.0
    assert_close(actual, e, OP * largest, what)
