"""Clocks and memory counters measure what they say."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.meters import peak_rss_bytes, since_process_start, timed, wait_until_quiet

ROOT = Path(__file__).resolve().parents[2]


def test_sleep_takes_wall_time_only() -> None:
    with timed() as span:
        time.sleep(0.2)
    assert 0.2 <= span.wall < 5
    assert span.cpu < 0.1


def test_work_takes_cpu_time() -> None:
    with timed() as span:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert 0.1 <= span.cpu <= span.wall + 0.02


def test_time_since_the_start_of_the_process_goes_on() -> None:
    first = since_process_start()
    time.sleep(0.1)
    second = since_process_start()
    assert second.wall - first.wall > 0.05
    assert 0 < first.cpu <= second.cpu


def test_waiting_for_quiet_ends_when_it_is_or_when_patience_does() -> None:
    with timed() as quiet:
        wait_until_quiet(max_others=1e9, patience=60)
    with timed() as impatient:
        wait_until_quiet(max_others=-1.0, patience=1.5)
    assert quiet.wall < 30
    assert 1.5 <= impatient.wall < 30


def test_peak_memory_counts_what_was_used_and_given_back() -> None:
    before = peak_rss_bytes()
    block = np.ones(before + 100_000_000, np.uint8)
    del block
    assert peak_rss_bytes() > before + 100_000_000


def test_peak_memory_of_a_parent_is_not_inherited() -> None:
    block = np.ones(300_000_000, np.uint8)
    code = "from benchmarks.meters import peak_rss_bytes; print(peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < block.nbytes
