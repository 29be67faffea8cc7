"""Workers run in processes of their own, and again when they were disturbed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import launch
from benchmarks.launch import WorkerError, run_undisturbed, run_worker


@pytest.mark.parametrize(
    ("others", "calls", "kept"),
    [([0.1, 0.0], 1, 0.1), ([0.9, 0.1], 2, 0.1), ([0.9, 0.5, 0.7, 0.0], 3, 0.5)],
    ids=["quiet at once", "quiet the second time", "never quiet"],
)
def test_a_disturbed_run_is_repeated_and_the_quietest_kept(
    monkeypatch: pytest.MonkeyPatch, others: list[float], calls: int, kept: float
) -> None:
    seen: list[dict[str, Any]] = []

    def worker(kind: str, threads: int, **job: Any) -> dict[str, Any]:
        seen.append(job)
        return {"others": others[len(seen) - 1]}

    monkeypatch.setattr(launch, "run_worker", worker)
    result = run_undisturbed("generate", 1, max_others=0.2, tries=3, patience=0.0, subject="x")
    assert len(seen) == calls
    assert (result["others"], result["disturbed"]) == (kept, kept > 0.2)


def test_limits_are_measured_in_a_process_of_its_own() -> None:
    found = run_worker("limits", 2, array_bytes=2**22)
    assert found["array_bytes"] == 2**22
    assert found["read_bytes_per_second"] > 1e8
    assert found["float32_flop_per_second"] > 1e8


def test_a_failing_worker_shows_its_error() -> None:
    with pytest.raises(WorkerError, match="KeyError: 'no such kind'"):
        run_worker("no such kind", 1)
