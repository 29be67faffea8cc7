from __future__ import annotations

import pytest

from dsv3export.runtime import threads


@pytest.mark.parametrize(
    ("siblings", "quota", "expected"),
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, "max 100000", 2),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "max 100000", 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "150000 100000", 2),
        ({0: "0", 1: "1"}, "5000 100000", 1),
        ({0: "", 1: ""}, "", 2),
    ],
)
def test_counts_usable_physical_cores(
    monkeypatch: pytest.MonkeyPatch, siblings: dict[int, str], quota: str, expected: int
) -> None:
    files = {threads._TOPOLOGY.format(cpu): text for cpu, text in siblings.items()} | {threads._QUOTA: quota}
    monkeypatch.setattr(threads, "_read", files.__getitem__)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(siblings))
    assert threads.default_threads() == expected


def test_is_at_least_one_here() -> None:
    assert threads.default_threads() >= 1
