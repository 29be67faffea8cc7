from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import broken_bounds, drafts, prefixes

GOOD: dict[str, Any] = {
    "batches": {"ratio": 3.1},
    "prefixes": {"ratio": 5.1},
    "drafts": {"1": {"text_as_without": True}, "2": {"text_as_without": True}},
    "load": {"wrong_count": 0, "exit_code": 0},
}


def test_bounds_that_hold() -> None:
    assert broken_bounds(GOOD) == []


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("batches", {"ratio": 2.9}, "eight slots: 2.90"),
        ("prefixes", {"ratio": 4.0}, "shared beginning: 4.00"),
        ("drafts", {"1": {"text_as_without": True}, "2": {"text_as_without": False}}, "drafts changed the text"),
        ("load", {"wrong_count": 1, "exit_code": 0}, "1 wrong"),
        ("load", {"wrong_count": 0, "exit_code": 1}, "exit code 1"),
    ],
)
def test_bounds_that_do_not(part: str, value: dict[str, Any], says: str) -> None:
    (line,) = broken_bounds({**GOOD, part: value})
    assert says in line


def test_what_is_measured(tiny_engine: Path) -> None:
    found = drafts(tiny_engine, threads=1, repeats=1)
    assert all(found[count]["text_as_without"] and found[count]["acceptance"] > 0.3 for count in ("1", "2"))
    assert found["0"]["acceptance"] is None and set(found["speed_up"]) == {"1", "2"}
    shared = prefixes(tiny_engine, threads=1, repeats=1)
    assert shared["ratio"] == shared["first_seconds"][0] / shared["second_seconds"][0] > 1
