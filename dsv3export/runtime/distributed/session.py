"""An engine over several ranks, as the session that everything above runs on. Lives at rank 0."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, finalize

import numpy as np

from dsv3export.runtime.distributed.commands import Command, Kind, RowCopy
from dsv3export.runtime.distributed.faults import JobFault
from dsv3export.runtime.distributed.micro_batches import MicroBatch, micro_batches
from dsv3export.runtime.distributed.worker import RankFigures, Worker
from dsv3export.runtime.drafting import no_drafts
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache

if TYPE_CHECKING:
    from dsv3export.engine.parallel import Layout
    from dsv3export.runtime.distributed.communicator import Communicator
    from dsv3export.runtime.distributed.watch import Watch
    from dsv3export.runtime.session import Hidden, IntArray, Logits


@dataclass(frozen=True)
class Model:
    """What a session has to know of the whole engine.

    Attributes:
        name: For messages.
        drafts: Whether it has the MTP layer.
    """

    name: str
    vocab_size: int
    hidden_size: int
    drafts: bool


@dataclass(eq=False)
class _InFlight:
    """A command that was sent, and its results once they have come."""

    command: Command
    results: list[Logits] | None


class DistributedSession:
    """A `DraftingSession` whose steps run on all ranks.

    Rank 0 sends each step to the others as a command, computes its own part and takes the results from the first rank
    of the last stage. Over several stages a long step is cut into micro-batches, and short ones of several batches may
    be begun before the first has ended (`begin_step`), so that the stages work at the same time.

    Args:
        worker: Rank 0's part.
        communicator, layout: To the others, and how they lie.
        model: What all ranks have a part of.
        leave: Ends the connections, when the other ranks were told.
        watch: What knows of faults.

    Attributes:
        cache_layout: Of rank 0's layers; the other ranks have caches of their own, of the same slots and capacity.
        depth: How many steps in flight keep all stages busy.

    Every method raises JobFault when another rank is gone.
    """

    cache_on_host = False  # but a part of it

    def __init__(
        self, worker: Worker, communicator: Communicator, layout: Layout, model: Model, leave: Callable[[], None],
        watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self._worker, self._communicator, self._layout, self._model = worker, communicator, layout, model
        self.vocab_size, self.depth = model.vocab_size, layout.pp
        own = worker.cache_layout(Kind.STEP)
        assert own is not None  # every rank has a part of the trunk
        self.cache_layout: CacheLayout = own
        self._numbers: WeakKeyDictionary[LatentCache, int] = WeakKeyDictionary()
        self._fresh = count(1)
        self._dropped: deque[int] = deque()
        self._in_flight: deque[_InFlight] = deque()
        self._lock = threading.RLock()
        self._watch = watch
        self._closing = finalize(self, _close, communicator, leave)

    @property
    def watch(self) -> Watch | None:
        """See `RankedSession`."""
        return self._watch

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        """See `Session.step`."""
        return self._step(input_ids, start, cache, slots, logit_rows, hidden=False)[0]

    def step_hidden(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> tuple[Logits, Hidden]:
        """See `DraftingSession.step_hidden`."""
        return self._step(input_ids, start, cache, slots, logit_rows, hidden=True)

    def begin_step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Callable[[], Logits]:
        """See `PipelinedSession`."""
        flight = self._begin(self._command(Kind.STEP, input_ids, start, cache, slots, logit_rows), cache)
        return lambda: self._end(flight)[0]

    @property
    def draft_cache_layout(self) -> CacheLayout:
        """See `DraftingSession`; without layers where rank 0 has no part of the MTP layer."""
        if not self._model.drafts:
            raise no_drafts(self._model.name)
        own = self._worker.cache_layout(Kind.DRAFT)
        return own or CacheLayout(0, self.cache_layout.width, self.cache_layout.dtype, self.cache_layout.side_width)

    def draft(
        self, hidden: Hidden, next_ids: IntArray, start: IntArray, cache: LatentCache, slots: range,
        logit_rows: IntArray,
    ) -> tuple[Logits, Hidden]:  # fmt: skip
        """See `DraftingSession.draft`."""
        command = self._command(Kind.DRAFT, next_ids, start, cache, slots, logit_rows, hidden=True)
        logits, draft_hidden = self._end(self._begin(command, cache, hidden))
        return logits, draft_hidden

    def copy_rows(
        self, cache: LatentCache, slot: int, start: int, source: LatentCache, source_slot: int, rows: range
    ) -> None:
        """See `CopyingSession`; the other ranks copy theirs in the order of commands."""
        with self._lock:
            copy = RowCopy(start, self._number(source), source_slot, rows)
            self._tell(Command.copy_rows(self._number(cache), cache.slots, cache.capacity, slot, copy))
            cache.copy_rows(slot, start, source, source_slot, rows)

    def figures(self) -> list[RankFigures]:
        """What each rank has done so far."""
        with self._lock:
            self._collect()
            self._tell(Command(Kind.REPORT))
            figures = [self._worker.figures(sum(cache.nbytes for cache in list(self._numbers)))]
            for rank in range(1, self._layout.world):
                array = RankFigures.empty()
                self._communicator.receive(array, rank, "control")
                figures.append(RankFigures.from_array(rank, array))
            return figures

    def close(self) -> None:
        """Ends the other ranks; happens at the end of the process by itself. Does nothing a second time."""
        with self._lock:
            with suppress(JobFault):
                self._collect()  # of requests that were given up
            self._closing()

    def _step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray, hidden: bool
    ) -> tuple[Logits, Hidden]:
        logits = np.empty((len(logit_rows), self.vocab_size), np.float32)
        states = np.empty((*input_ids.shape, self._model.hidden_size if hidden else 0), np.float32)
        begun: list[tuple[MicroBatch, _InFlight]] = []
        with self._lock:
            for part in micro_batches(input_ids, start, logit_rows, self._layout.pp):
                command = self._command(Kind.STEP, part.input_ids, part.start, cache, slots, part.logit_rows, hidden)
                begun.append((part, self._begin(command, cache)))
            for part, flight in begun:
                logits[part.places], *rest = self._end(flight)
                if rest:
                    states[:, part.tokens] = rest[0]
        return logits, states

    def _command(
        self, kind: Kind, ids: IntArray, start: IntArray, cache: LatentCache, slots: range, rows: IntArray,
        hidden: bool = False,
    ) -> Command:  # fmt: skip
        number = self._number(cache)
        return Command(kind, number, cache.slots, cache.capacity, slots.start, start, rows, ids, hidden)

    def _number(self, cache: LatentCache) -> int:
        """By which all ranks know a cache."""
        if cache not in self._numbers:
            number = self._numbers[cache] = next(self._fresh)
            # The collector may run this anywhere, so the others are told later.
            finalize(cache, self._dropped.append, number)
        return self._numbers[cache]

    def _begin(self, command: Command, cache: LatentCache, hidden: Hidden | None = None) -> _InFlight:
        with self._lock:
            while self._dropped:
                self._tell(Command(Kind.DROP_CACHE, self._dropped.popleft()))
            self._tell(command)
            if hidden is not None:
                states = np.ascontiguousarray(hidden, np.float32)
                for rank in range(max(1, self._layout.logits_rank), self._layout.world):
                    self._communicator.send(states, rank)
                hidden = states
            results = self._worker.compute(command, cache, hidden)
            flight = _InFlight(command, results if self._layout.logits_rank == 0 else None)
            if flight.results is None:
                self._in_flight.append(flight)
            return flight

    def _end(self, flight: _InFlight) -> list[Logits]:
        """The results of a command; those begun before it are taken first."""
        with self._lock:
            while flight.results is None:
                self._receive(self._in_flight.popleft())
            return flight.results

    def _collect(self) -> None:
        """Takes what is on its way."""
        while self._in_flight:
            self._receive(self._in_flight.popleft())

    def _receive(self, flight: _InFlight) -> None:
        command = flight.command
        shapes: list[tuple[int, ...]] = [(len(command.logit_rows), self.vocab_size)]
        if command.hidden:
            shapes.append((*command.input_ids.shape, self._model.hidden_size))
        flight.results = [np.empty(shape, np.float32) for shape in shapes]
        for array in flight.results:
            self._communicator.receive(array, self._layout.logits_rank)

    def _tell(self, command: Command) -> None:
        tell(self._communicator, command)


def tell(communicator: Communicator, command: Command) -> None:
    """Sends a command from rank 0 to all others."""
    for message in command.to_messages():
        for rank in range(1, communicator.world_size):
            communicator.send(message, rank, "control")


def _close(communicator: Communicator, leave: Callable[[], None]) -> None:
    with suppress(JobFault):  # whoever is gone needs no telling
        tell(communicator, Command(Kind.END))
        leave()
