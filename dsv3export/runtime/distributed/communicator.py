"""How ranks talk: what a transport has to offer, and what goes over it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

Ranks = Sequence[int]
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Kind = Literal["all_reduce", "gather", "send", "control"]


@dataclass
class Traffic:
    """What one rank has put on the wire, in bytes, by the ring algorithms' arithmetic, and how long it waited.

    An all-reduce of n bytes over g ranks counts 2 n (g - 1) / g for each of them (Patarasu & Yuan 2009), a gather its
    part for each but the first, a message its size. Nothing is counted within a group of one.

    Attributes:
        sent: Bytes by kind; "control" are the commands.
        seconds: In which the rank waited for a message or a collective; commands are not counted, as an idle rank
            waits for one.
    """

    sent: dict[Kind, int] = field(default_factory=lambda: {"all_reduce": 0, "gather": 0, "send": 0, "control": 0})
    seconds: float = 0.0

    def reduced(self, nbytes: int, ranks: int) -> None:
        """An all-reduce of `nbytes` over that many ranks."""
        self.sent["all_reduce"] += 2 * (ranks - 1) * nbytes // ranks

    def message(self, nbytes: int, kind: Kind = "send") -> None:
        """A message to one rank."""
        self.sent[kind] += nbytes

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


class Communicator(Protocol):
    """One rank's end of a transport.

    Groups are ranks in ascending order, of the layout's; all of a group call its collectives in the same order.
    A group of one is allowed everywhere and does nothing. Arrays are contiguous, in the host's memory.

    Every method may raise JobFault: another rank is gone, and with it the whole job.
    """

    traffic: Traffic

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def all_reduce(self, array: Array, group: Ranks) -> None:
        """Replaces `array` by the sum over the group; all get the same bits."""
        ...

    def gather(self, part: Array, parts: Sequence[Array] | None, group: Ranks) -> None:
        """Fills parts[i], at the first rank of the group, with the part of group[i]; elsewhere `parts` is None.

        Of one dtype; shapes may differ.
        """
        ...

    def send(self, array: Array, to: int, kind: Kind = "send") -> None:
        """Sends a copy; returns before it has arrived. Messages between two ranks arrive in their order."""
        ...

    def receive(self, array: Array, source: int, kind: Kind = "send") -> None:
        """Fills `array` with the next message from there, which must be of its size."""
        ...

    def barrier(self) -> None:
        """Waits for all ranks."""
        ...

    def computing(self) -> AbstractContextManager[None]:
        """What the rank does by itself, for whoever watches that it comes to an end."""
        ...

    def abort(self, cause: str) -> None:
        """Tells all ranks that this one cannot go on. Returns."""
        ...

    def close(self) -> None:
        """Ends the connections; what was sent and not received is lost. All ranks call it, after a barrier."""
        ...
