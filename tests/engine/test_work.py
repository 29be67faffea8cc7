"""Units of work: parts of weights, and running tasks within limits."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.work import ONE_AT_A_TIME, Limits, Part, in_parallel


def test_a_part_is_where_its_rows_are() -> None:
    array = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    weight = PlannedWeight("w", "F32", array.shape, (), "")
    for rows in [None, (0, 1), (2, 5), (4, 4)]:
        part = Part(weight, rows)
        expected = array if rows is None else array[slice(*rows)]
        assert part.shape == expected.shape
        assert array.tobytes()[part.offset : part.offset + part.nbytes] == expected.tobytes()
    scalar = Part(PlannedWeight("s", "BF16", (), (), ""))
    assert (scalar.shape, scalar.offset, scalar.nbytes) == ((), 0, 2)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 4), st.integers(0, 20))
def test_each_task_runs_once_within_the_limits(sizes: list[int], threads: int, memory: int) -> None:
    lock = threading.Lock()
    running: list[int] = []
    ended: list[int] = []

    def run(task: int) -> int:
        with lock:
            running.append(task)
            assert len(running) <= threads
            assert len(running) == 1 or sum(sizes[each] for each in running) <= memory
        time.sleep(0)
        with lock:
            running.remove(task)
        return task * 2

    def done(task: int, result: int) -> None:
        assert result == task * 2
        ended.append(task)

    in_parallel(range(len(sizes)), run, Limits(threads, memory), lambda task: sizes[task], done)
    assert sorted(ended) == list(range(len(sizes)))


def test_tasks_that_fit_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=30)
    in_parallel(range(3), lambda _: barrier.wait(), Limits(3, 3), lambda _: 1, lambda *_: None)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_no_more_are_begun(error: type[BaseException]) -> None:
    begun: list[int] = []

    def run(task: int) -> None:
        begun.append(task)
        if task == 3:
            raise error("task 3")

    with pytest.raises(error, match="task 3"):
        in_parallel(range(100), run, ONE_AT_A_TIME, lambda _: 1, lambda *_: None)
    assert begun == [0, 1, 2, 3]
