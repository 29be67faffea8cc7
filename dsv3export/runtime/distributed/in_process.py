"""Ranks as threads of one process: for tests of everything that is not the transport."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np

from dsv3export.errors import InternalError
from dsv3export.runtime.distributed.communicator import Array, Kind, Ranks, Traffic
from dsv3export.runtime.distributed.faults import JobFault

T = TypeVar("T")
_HOST = "this process"


class _World:
    """What the threads share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.messages: dict[tuple[int, int, Kind], deque[Array]] = defaultdict(deque)
        self.fault: JobFault | None = None

    def take(self, source: int, to: int, kind: Kind) -> Array:
        """The next message from one rank to another; waits for it."""
        with self.changed:
            queue = self.messages[source, to, kind]
            self.changed.wait_for(lambda: queue or self.fault)
            if self.fault:
                raise self.fault
            return queue.popleft()

    def put(self, source: int, to: int, kind: Kind, array: Array) -> None:
        with self.changed:
            if self.fault:
                raise self.fault
            self.messages[source, to, kind].append(array)
            self.changed.notify_all()


class InProcessCommunicator:
    """A `Communicator` between threads. Collectives are made of messages that are not counted as such."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world, self._rank = world, rank
        self.traffic = Traffic()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world.size

    def all_reduce(self, array: Array, group: Ranks) -> None:
        """See `Communicator`. Adds up in the order of the ranks, in float32."""
        if len(group) > 1:
            parts = self._exchange(array, group, "all_reduce")
            array[...] = np.sum([part.astype(np.float32) for part in parts], axis=0).astype(array.dtype)
            self.traffic.reduced(array.nbytes, len(group))

    def gather(self, part: Array, parts: Sequence[Array] | None, group: Ranks) -> None:
        """See `Communicator`."""
        if parts is None:
            self._world.put(self._rank, group[0], "gather", part.copy())
            self.traffic.message(part.nbytes, "gather")
            return
        parts[0][...] = part
        with self.traffic.waiting():
            for target, source in zip(parts[1:], group[1:], strict=True):
                target[...] = self._world.take(source, self._rank, "gather")

    def _exchange(self, array: Array, group: Ranks, kind: Kind) -> list[Array]:
        with self.traffic.waiting():
            for to in group:
                self._world.put(self._rank, to, kind, array.copy())
            return [self._world.take(source, self._rank, kind) for source in group]

    def send(self, array: Array, to: int, kind: Kind = "send") -> None:
        """See `Communicator`."""
        self._world.put(self._rank, to, kind, array.copy())
        self.traffic.message(array.nbytes, kind)

    def receive(self, array: Array, source: int, kind: Kind = "send") -> None:
        """See `Communicator`."""
        if kind == "control":
            message = self._world.take(source, self._rank, kind)
        else:
            with self.traffic.waiting():
                message = self._world.take(source, self._rank, kind)
        if message.nbytes != array.nbytes:
            raise InternalError(f"a message of {message.nbytes} bytes came where {array.nbytes} were expected")
        array.reshape(-1).view(np.uint8)[...] = message.reshape(-1).view(np.uint8)

    def barrier(self) -> None:
        """See `Communicator`."""
        self._exchange(np.zeros(1, np.int8), tuple(range(self._world.size)), "control")

    def computing(self) -> AbstractContextManager[None]:
        """See `Communicator`."""
        return nullcontext()

    def abort(self, cause: str) -> None:
        """See `Communicator`."""
        with self._world.changed:
            self._world.fault = self._world.fault or JobFault(self._rank, _HOST, cause)
            self._world.changed.notify_all()

    def close(self) -> None:
        """See `Communicator`."""


def run_ranks(size: int, work: Callable[[InProcessCommunicator], T]) -> list[T]:
    """Runs `work` as each of `size` ranks and returns their results; one that raises ends all, and is raised."""
    world = _World(size)

    def run(rank: int) -> T:
        communicator = InProcessCommunicator(world, rank)
        try:
            return work(communicator)
        except BaseException as error:
            communicator.abort(f"{type(error).__name__}: {error}")
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, JobFault)), errors[0])
    return [future.result() for future in futures]
