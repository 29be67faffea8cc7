"""The timer of a GPU, on a torch whose GPU is the test's: what is captured, how it is divided, what is not captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks.gpu.limits import measured_limits
from benchmarks.gpu.timing import CudaTimer, NoTimer, Times

RUN = 5.0
"""Microseconds of one run on the test's GPU."""


class Gpu:
    """Counts the work that was queued; a graph's replay queues what was captured."""

    def __init__(self, capturable: bool = True) -> None:
        self.clock, self.captured, self.capturable = 0.0, 0, capturable
        self.capturing = False
        self.seen: list[int] = []

    def run(self, copy: int) -> None:
        if self.capturing and not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.seen.append(copy)
        if self.capturing:
            self.captured += 1
        else:
            self.clock += RUN

    @contextmanager
    def graph(self, _: Any) -> Iterator[None]:
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def replay(self) -> None:
        self.clock += self.captured * RUN


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(gpu: Gpu) -> Gpu:
        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.time = gpu.clock

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                """Milliseconds."""
                return (end.time - self.time) / 1000

        class Graph:
            replay = staticmethod(gpu.replay)

        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", gpu.graph)
        return gpu

    return install


@pytest.mark.parametrize(("copies", "captured"), [(1, 8), (3, 9), (64, 64)])
def test_a_graph_has_rounds_of_all_copies(install: Any, copies: int, captured: int) -> None:
    gpu = install(Gpu())
    times = CudaTimer()(gpu.run, copies)
    assert times == Times(pytest.approx(RUN), pytest.approx(RUN), pytest.approx(RUN), captured=True)
    assert gpu.captured == captured
    rounds = gpu.seen[min(copies, 3) :]
    assert rounds == list(range(copies)) * (captured // copies)


def test_what_cannot_be_captured_is_launched_and_said_so(install: Any) -> None:
    gpu = install(Gpu(capturable=False))
    times = CudaTimer()(gpu.run, 2)
    assert times.microseconds == pytest.approx(RUN)
    assert not times.captured


def test_limits_are_of_one_copy_and_one_product() -> None:
    def timer(run: Any, copies: int) -> Times:
        run(0)
        return Times(2.0, 2.0, 2.0)

    limits = measured_limits(timer, torch.device("cpu"), side=64, copied=1000)
    assert limits.bandwidth == pytest.approx(2 * 1000 / 2e-6)
    assert limits.rates["bf16"] == pytest.approx(2 * 64**3 / 2e-6)


def test_without_a_timer_each_copy_runs_once() -> None:
    seen: list[int] = []
    assert not NoTimer()(seen.append, 3).captured
    assert seen == [0, 1, 2]
