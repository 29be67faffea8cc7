"""What is kept of a layer's values says how far another one's are away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.golden.digest import digest, digest_errors
from dsv3export.golden.document import Settings


def rows(seed: int, tokens: int = 40, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)


@pytest.mark.parametrize("kind", ["norm", "projections", "full"])
def test_equal_values_have_no_error(kind: str) -> None:
    settings = Settings(digest=kind)
    errors = digest_errors(digest(rows(0), settings), rows(0), settings)
    assert errors.error.max() == 0


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-5, 1e-2, 1.0]))
def test_projections_estimate_the_error_and_the_norm_bounds_it(seed: int, size: float) -> None:
    mine = rows(seed)
    got = mine + size * rows(seed + 1)
    true = np.linalg.norm(got.astype(np.float64) - mine, axis=1) / np.linalg.norm(mine, axis=1)
    found = {}
    for kind in ("norm", "projections", "full"):
        settings = Settings(digest=kind, projections=32)
        found[kind] = digest_errors(digest(mine, settings), got, settings).error
    assert (found["full"] <= true * 1.001).all()
    assert (found["norm"] <= true + 1e-7).all()
    # 40 rows of chi-squared estimates with 32 degrees of freedom: their mean errs by 2 %
    assert 0.85 < np.mean(np.square(found["projections"])) / np.mean(np.square(found["full"])) < 1.15


def test_a_single_wrong_row_is_named() -> None:
    settings = Settings(digest="full")
    got = rows(3)
    got[7, 11] += 2
    errors = digest_errors(digest(rows(3), settings), got, settings)
    assert np.flatnonzero(errors.error).tolist() == [7]
    assert (errors.column[7], errors.got[7] - errors.expected[7]) == (11, pytest.approx(2))


@pytest.mark.parametrize("kind", ["norm", "projections", "full"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_infinitely_wrong(kind: str, value: float) -> None:
    settings = Settings(digest=kind)
    got = rows(4)
    got[5, 1] = value
    errors = digest_errors(digest(rows(4), settings), got, settings)
    assert errors.error[5] == np.inf
    assert np.flatnonzero(errors.error).tolist() == [5]


def test_projections_are_the_same_everywhere() -> None:
    """Their signs are part of the format: a golden is compared by other programs on other machines."""
    kept = digest(np.eye(3, dtype=np.float32), Settings(projections=4))["projections"] * 2
    assert kept.tolist() == [[1, 1, 1, 1], [1, 1, -1, 1], [-1, -1, 1, -1]]
