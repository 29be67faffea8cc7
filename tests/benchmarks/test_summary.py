"""Medians, ratios and shares, on numbers that can be checked by head."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.limits import Limits
from benchmarks.subjects import OURS
from benchmarks.summary import figures, shares_of_limits, summarise


def span(wall: float, cpu: float) -> dict[str, float]:
    return {"wall": wall, "cpu": cpu, "others": 0.0}


def run(decode_seconds: list[float]) -> dict[str, Any]:
    return {
        "ready": span(3.0, 2.0),
        "prefill": [span(0.5, 1.0)] * len(decode_seconds),
        "decode": [span(seconds, 2 * seconds) for seconds in decode_seconds],
        "peak_rss_bytes": 2_000_000_000,
        "anonymous_rss_bytes": 1_500_000_000,
    }


def test_figures_of_a_run_are_tokens_by_the_median_pass() -> None:
    found = figures(run([9.0, 2.0, 1.0]), prompt_tokens=100, new_tokens=10)
    assert found["decode_tokens_per_s_wall"] == 5.0
    assert found["decode_tokens_per_s_cpu"] == 2.5
    assert found["prefill_tokens_per_s_wall"] == 200.0
    assert found["ready_s_cpu"] == 2.0
    assert (found["peak_rss_gb"], found["anonymous_rss_gb"]) == (2.0, 1.5)


def test_ratios_are_taken_repeat_by_repeat() -> None:
    # both programs are slowed down alike in the second repeat: their ratio stays
    ours = [{"decode": 20.0}, {"decode": 10.0}, {"decode": 24.0}]
    theirs = [{"decode": 10.0}, {"decode": 5.0}, {"decode": 8.0}]
    found = summarise({OURS: ours, "other": theirs})
    assert found["subjects"][OURS]["decode"] == {"median": 20.0, "low": 10.0, "high": 24.0}
    assert found["ratios"] == {"other": {"decode": {"median": 2.0, "low": 2.0, "high": 3.0}}}


def test_shares_of_what_the_machine_can_do() -> None:
    ours = {"decode_tokens_per_s_wall": {"median": 10.0}, "prefill_tokens_per_s_wall": {"median": 100.0}}
    limits = Limits(read_bytes_per_second=8e9, float32_flop_per_second=40e9, array_bytes=1)
    assert shares_of_limits(ours, limits, active_parameters=100_000_000) == {
        "decode_of_read_bandwidth": pytest.approx(0.5),
        "prefill_of_matmul": pytest.approx(0.5),
    }
