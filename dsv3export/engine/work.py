"""The units that an engine's weights are made in: small enough for memory, large enough to be worth a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from dsv3export.dtypes import itemsize
from dsv3export.engine.plan import PlannedWeight

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """Rows `begin` to `end` of a planned weight's first axis; None is all of it."""

    weight: PlannedWeight
    rows: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of these rows."""
        if self.rows is None:
            return self.weight.shape
        begin, end = self.rows
        return (end - begin, *self.weight.shape[1:])

    @property
    def offset(self) -> int:
        """Where they begin in the weight's bytes."""
        if self.rows is None:
            return 0
        return self.rows[0] * math.prod(self.weight.shape[1:]) * itemsize(self.weight.dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.weight.dtype)


@dataclass(frozen=True)
class WorkUnit:
    """What is made at once: rows of weights that are made of the same numbers.

    Args:
        parts: What comes of it.
        memory: Bytes that making it takes at most, the result included.
        make: Makes the arrays, one for each part. Called in any thread; equal units give equal bytes.
    """

    parts: tuple[Part, ...]
    memory: int
    make: Callable[[], Sequence[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True)
class Stage:
    """Units that may be made in any order, after `prepare` has run; left out where no unit is to be made."""

    units: tuple[WorkUnit, ...]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Limits:
    """How many threads work at once, and how many bytes their work may take together."""

    threads: int
    memory: int


ONE_AT_A_TIME = Limits(threads=1, memory=0)


def in_parallel(
    tasks: Sequence[Task],
    run: Callable[[Task], Result],
    limits: Limits,
    memory_of: Callable[[Task], int],
    done: Callable[[Task, Result], None],
) -> None:
    """Run tasks in threads, as many at once as the limits allow, but always one.

    `done` is told of each as it ends, in the thread of the caller. An exception of a task, or one that reaches the
    caller's thread (Ctrl-C), is passed on when those that run have ended; no more are begun.
    """
    rest = list(reversed(tasks))
    running: dict[Future[Result], Task] = {}
    used = 0
    with ThreadPoolExecutor(limits.threads) as pool:
        while rest or running:
            while rest and len(running) < limits.threads:
                task = rest[-1]
                if running and used + memory_of(task) > limits.memory:
                    break
                used += memory_of(rest.pop())
                running[pool.submit(run, task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                used -= memory_of(task)
                done(task, future.result())
