"""Divergences, against scipy-free sums over probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsv3export.compare.distributions import Distributions, log_softmax, with_texts

logits = hnp.arrays(np.float32, (4, 7), elements=st.floats(-20, 20, width=32))


def softmax(values: Any) -> Any:
    powers = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@given(expected=logits, got=logits)
def test_by_the_definitions(expected: Any, got: Any) -> None:
    distributions = Distributions()
    distributions.add(0, expected[:1], got[:1])
    distributions.add(1, expected[1:], got[1:])
    found = distributions.summary()
    p, q = softmax(expected), softmax(got)
    kl = (p * np.log(p / q)).sum(axis=1)
    middle = (p + q) / 2
    js = ((p * np.log(p / middle)).sum(axis=1) + (q * np.log(q / middle)).sum(axis=1)) / 2
    assert found.positions == 4
    assert found.kl_mean == pytest.approx(kl.mean(), abs=1e-9)
    assert found.kl_max == pytest.approx(kl.max(), abs=1e-9)
    assert found.js_mean == pytest.approx(js.mean(), abs=1e-9)
    assert 0 <= found.top5 <= 1
    assert found.kl_by_position == pytest.approx([kl[:2].mean(), *kl[2:]], abs=1e-9)
    histogram = found.kl_histogram
    for edge in histogram.edges:
        if np.abs(kl - edge).min() > 1e-9:
            assert sum(histogram.counts[: histogram.edges.index(edge) + 1]) == (kl < edge).sum()
    assert sum(histogram.counts) == 4
    assert [token.kl for token in found.worst] == pytest.approx(sorted(kl, reverse=True), abs=1e-9)


def test_ranks_and_agreement() -> None:
    expected = np.array([[5.0, 4, 3, 2, 1, 0, -1], [0, 1, 2, 3, 4, 5, 6]])
    got = np.array([[5.0, 4, 3, 2, 1, 0, -1], [6, 5, 4, 3, 2, 1, 0]])
    distributions = Distributions()
    distributions.add(0, expected, got)
    found = distributions.summary()
    # Of 2..6 and 0..4, three tokens are the same.
    assert (found.top1, found.top5, found.worst_rank) == (0.5, (1 + 3 / 5) / 2, 6)


def test_the_worst_token_names_both_candidates_and_their_texts() -> None:
    distributions = Distributions()
    distributions.add(0, np.log([[0.5, 0.3, 0.2]]), np.log([[0.5, 0.3, 0.2]]))
    distributions.add(1, np.log([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]), np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    found = with_texts(distributions.summary(), [[8], [5, 6]], lambda ids: "<" + ",".join(map(str, ids)) + ">")
    worst = found.worst[0]
    assert (worst.prompt, worst.position, worst.rank, worst.before) == (1, 1, 2, "<5,6>")
    assert (worst.expected.token, worst.got.token, worst.got.text) == (0, 2, "<2>")
    assert (worst.expected.expected_p, worst.expected.got_p) == pytest.approx((0.7, 0.1))
    assert worst.kl == pytest.approx(0.6 * np.log(7))


def test_what_is_no_number_is_worst_of_all() -> None:
    distributions = Distributions()
    distributions.add(0, np.array([[9.0, 0], [1, 2], [0, 0]]), np.array([[0.0, 9], [np.nan, 2], [0, 0]]))
    found = distributions.summary()
    assert [token.position for token in found.worst] == [1, 0, 2]
    assert found.kl_histogram.counts[-1] == 1
    assert np.isnan(found.kl_mean)


def test_log_softmax_of_large_logits() -> None:
    assert log_softmax(np.array([[1e4, 0.0]])).tolist() == [[0.0, -1e4]]
