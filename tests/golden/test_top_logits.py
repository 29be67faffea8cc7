"""Distributions of which the likeliest tokens are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.compare.distributions import kl_divergence, log_softmax
from dsv3export.golden.top_logits import distribution_errors, kept_distribution_errors, top_logits

V = 200


def logits(seed: int, rows: int = 12) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal((rows, V))).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), top=st.sampled_from([1, 2, 8, V]), size=st.sampled_from([1e-3, 0.1, 2.0]))
def test_the_divergence_of_what_is_kept_is_at_most_the_whole(seed: int, top: int, size: float) -> None:
    mine = logits(seed)
    got = mine + np.float32(size) * logits(seed + 1) / 3
    whole = kl_divergence(log_softmax(mine), log_softmax(got))
    errors = distribution_errors(top_logits(mine, top), got)
    assert (errors.kl <= whole + 1e-6).all()
    complete = distribution_errors(top_logits(mine, 0), got)
    np.testing.assert_allclose(complete.kl, whole, rtol=1e-3, atol=1e-6)
    if top > 1:
        assert errors.kl.sum() > 0


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-50, 50))
def test_what_is_added_to_all_logits_changes_nothing(seed: int, shift: float) -> None:
    errors = distribution_errors(top_logits(logits(seed), 8), logits(seed) + np.float32(shift))
    assert errors.error.max() < 2e-5
    assert errors.kl.max() < 1e-6


def test_the_likeliest_come_first_and_equal_ones_in_order() -> None:
    row = np.array([[0.0, 3.0, 3.0, -1.0, 7.0]], np.float32)
    kept = top_logits(row, 3)
    assert kept.ids is not None
    assert kept.ids.tolist() == [[4, 1, 2]]
    assert kept.values.tolist() == [[7, 3, 3]]
    np.testing.assert_allclose(np.exp(top_logits(row, 0).log_p).sum(), 1, rtol=1e-6)


def test_the_token_that_moved_most_is_named() -> None:
    mine = logits(1)
    kept = top_logits(mine, 8)
    assert kept.ids is not None
    token = int(kept.ids[4, 2])
    got = mine.copy()
    got[4, token] -= 1
    errors = distribution_errors(kept, got)
    assert errors.error.argmax() == 4
    assert errors.token[4] == token
    assert errors.expected[4] > errors.got[4]


def test_the_movement_is_that_of_the_two_likeliest() -> None:
    mine = np.array([[1.0, 0.9, -3.0]], np.float32)
    got = np.array([[0.9, 1.0, -9.0]], np.float32)
    errors = distribution_errors(top_logits(mine, 3), got)
    assert errors.moved[0] == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("top", [0, 8])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_infinitely_wrong(top: int, value: float) -> None:
    got = logits(2)
    got[3, 5] = value
    errors = distribution_errors(top_logits(logits(2), top), got)
    assert errors.error[3] == errors.kl[3] == np.inf
    assert np.isfinite(errors.error[[0, 1, 2, 4]]).all()


@pytest.mark.parametrize("top", [0, 2])
def test_whether_the_likeliest_token_is_the_same(top: int) -> None:
    kept = top_logits(np.array([[0.0, 2.0, 1.0]] * 3), top)
    got = np.array([[0.0, 1.1, 1.0], [0.0, 1.0, 1.1], [np.nan, 2.0, 1.0]])
    assert distribution_errors(kept, got).same.tolist() == [True, False, False]


@given(seed=st.integers(0, 2**32 - 1), top=st.sampled_from([0, 1, 2, 8, V]), size=st.sampled_from([1e-3, 0.1, 2.0]))
def test_of_two_records_no_more_is_seen_than_of_the_logits(seed: int, top: int, size: float) -> None:
    """And all of it where both have kept all tokens, in whatever order."""
    mine, got = logits(seed), logits(seed) + np.float32(size) * logits(seed + 1)
    kept = top_logits(mine, top)
    whole, seen = distribution_errors(kept, got), kept_distribution_errors(kept, top_logits(got, top))
    assert (seen.same == whole.same).all()
    assert (seen.error <= whole.error + 1e-6).all() and (seen.kl <= whole.kl + 1e-6).all()
    if top in (0, V):
        np.testing.assert_allclose(seen.error, whole.error, atol=1e-5)
        np.testing.assert_allclose(seen.kl, whole.kl, atol=1e-5)
        assert (seen.token == whole.token).all()
