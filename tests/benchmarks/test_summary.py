"""Medians, ratios and shares, on numbers that can be checked by head."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.limits import Limits
from benchmarks.summary import figures, ratios, shares_of_limits, spreads
from benchmarks.weight_bytes import WeightBytes


def span(wall: float, cpu: float) -> dict[str, float]:
    return {"wall": wall, "cpu": cpu, "others": 0.0}


def run(decode_seconds: list[float]) -> dict[str, Any]:
    return {
        "ready": span(3.0, 2.0),
        "prefill": {"100": [span(0.5, 1.0)], "400": [span(4.0, 8.0), span(1.0, 2.0), span(2.0, 4.0)]},
        "decode": [span(seconds, 2 * seconds) for seconds in decode_seconds],
        "peak_rss_bytes": 2_000_000_000,
        "anonymous_rss_bytes": 1_500_000_000,
        "file_rss_bytes": 250_000_000,
    }


def test_figures_of_a_run_are_tokens_by_the_median_pass() -> None:
    found = figures(run([9.0, 2.0, 1.0]), new_tokens=10)
    assert found["decode_tokens_per_s_wall"] == 5.0
    assert found["decode_tokens_per_s_cpu"] == 2.5
    assert found["prefill_100_tokens_per_s_wall"] == 200.0
    assert found["prefill_400_tokens_per_s_cpu"] == 100.0
    assert found["ready_s_cpu"] == 2.0
    assert (found["peak_rss_gb"], found["anonymous_rss_gb"], found["resident_gb"]) == (2.0, 1.5, 1.75)


def test_spreads_are_over_the_repeats() -> None:
    assert spreads([{"decode": 20.0}, {"decode": 10.0}, {"decode": 24.0}]) == {
        "decode": {"median": 20.0, "low": 10.0, "high": 24.0}
    }


def test_ratios_are_taken_repeat_by_repeat_and_of_the_pairs_only() -> None:
    # all programs are slowed down alike in the second repeat: their ratios stay
    runs = {
        "ours": [{"decode": 20.0}, {"decode": 10.0}, {"decode": 24.0}],
        "theirs": [{"decode": 10.0}, {"decode": 5.0}, {"decode": 8.0}],
        "once": [{"decode": 40.0}],
    }
    found = ratios(runs, [("ours", "theirs"), ("ours", "once")])
    assert found == {
        "ours": {
            "theirs": {"decode": {"median": 2.0, "low": 2.0, "high": 3.0}},
            "once": {"decode": {"median": 0.5, "low": 0.5, "high": 0.5}},
        }
    }


def test_shares_of_what_the_machine_can_do() -> None:
    found = {
        "decode_tokens_per_s_wall": {"median": 10.0},
        "decode_tokens_per_s_cpu": {"median": 1.0},
        "prefill_128_tokens_per_s_wall": {"median": 100.0},
    }
    limits = Limits(read_bytes_per_second=8e9, float32_flop_per_second=40e9, array_bytes=1)
    weights = WeightBytes(total=10**9, per_token=4e8)
    assert shares_of_limits(found, limits, weights, active_parameters=100_000_000) == {
        "decode_of_read_bandwidth": pytest.approx(0.5),
        "prefill_128_of_float32_matmul": pytest.approx(0.5),
    }


def test_the_best_of_several_limits() -> None:
    measured = [Limits(1.0, 4.0, 7), Limits(2.0, 3.0, 7)]
    assert Limits.best(measured) == Limits(2.0, 4.0, 7)
