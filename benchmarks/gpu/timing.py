"""How long work takes on a GPU: CUDA graphs of many runs over rotating buffers, timed by events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch

Run = Callable[[int], object]
_WARM, _REPEATS, _LEAST_RUNS = 3, 15, 8
# A case whose one run takes longer is repeated less.
_LONG_MICROSECONDS = 20_000.0


@dataclass(frozen=True)
class Times:
    """Microseconds of one run: the median of the repeats, the fastest and the slowest.

    `captured` is False where the work could not be captured, so that the time includes what Python takes to launch.
    """

    microseconds: float
    fastest: float
    slowest: float
    captured: bool = True


class Timer(Protocol):
    """Times `run(copy)`, with a copy of the inputs for each run."""

    def __call__(self, run: Run, copies: int) -> Times: ...


class CudaTimer:
    """Times on torch's current CUDA device.

    A graph holds one run for each copy of the inputs, some rounds of them, so that what Python does between two
    launches does not count and each run finds its inputs out of the cache. A graph's time is divided by its runs.
    """

    def __call__(self, run: Run, copies: int) -> Times:
        runs = copies * -(-_LEAST_RUNS // copies)
        torch.cuda.synchronize()
        for copy in range(min(copies, _WARM)):
            run(copy)
        torch.cuda.synchronize()
        replay, captured = self._captured(run, copies, runs)
        first = self._time(replay) / runs
        long = first > _LONG_MICROSECONDS
        times = [self._time(replay) / runs for _ in range(3 if long else _REPEATS)]
        return Times(median(times), min(times), max(times), captured)

    def _captured(self, run: Run, copies: int, runs: int) -> tuple[Callable[[], object], bool]:
        def eager() -> None:
            for each in range(runs):
                run(each % copies)

        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                eager()
        except RuntimeError:
            # A peer that waits for the device within its call cannot be captured.
            torch.cuda.synchronize()
            return eager, False
        graph.replay()
        return graph.replay, True

    def _time(self, work: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return 1000 * begin.elapsed_time(end)


class NoTimer:
    """Runs each copy once; an interpreter's time says nothing of a GPU's."""

    def __call__(self, run: Run, copies: int) -> Times:
        for copy in range(copies):
            run(copy)
        return Times(float("nan"), float("nan"), float("nan"), captured=False)


def copies_for(nbytes: int, cache: int, memory: int) -> int:
    """How many copies of inputs of `nbytes` to rotate through: three times the cache, within `memory`, at most 64."""
    wanted = -(-3 * cache // max(nbytes, 1))
    return max(1, min(wanted, memory // max(nbytes, 1), 64))
