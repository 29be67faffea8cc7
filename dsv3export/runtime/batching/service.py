"""A batch that runs in a thread of its own, for callers in others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from dsv3export.errors import BackendError, ResourceError, UserError
from dsv3export.runtime.batching.batcher import Batcher, Outcome
from dsv3export.runtime.generation import Piece, Request

_LOG = logging.getLogger(__name__)
Deliver = Callable[[Outcome], None]


class BusyError(ResourceError):
    """More requests wait than the service takes; try again later."""


class ClosedError(ResourceError):
    """The service takes no more requests."""


@dataclass(frozen=True)
class ServiceState:
    """What a service does at a moment."""

    running: int
    waiting: int
    cached_tokens: int


class BatchService:
    """Runs a batcher while there are requests. Methods may be called from any thread.

    What a request brings is handed to its `deliver`, in the service's thread: it must return quickly and raise
    nothing. The last thing delivered is a piece with a finish reason, or an error.

    Args:
        batcher: Belongs to the service from now on.
        max_waiting: How many requests may wait for a slot.
    """

    def __init__(self, batcher: Batcher, max_waiting: int = 256) -> None:
        self._batcher, self._max_waiting = batcher, max_waiting
        self._deliver: dict[int, Deliver] = {}
        self._changed = threading.Condition()
        self._submitted: dict[int, tuple[Request, Deliver]] = {}
        self._cancelled: set[int] = set()
        self._names: dict[int, int] = {}  # the batcher's ticket -> ours
        self._tickets = 0
        self._closing = False
        self._failure: UserError | None = None
        self._thread = threading.Thread(target=self._run, name="dsv3export-batch", daemon=True)
        self._thread.start()

    @property
    def state(self) -> ServiceState:
        """As of now."""
        with self._changed:
            waiting = self._batcher.waiting + len(self._submitted)
            return ServiceState(self._batcher.running, waiting, self._batcher.cached_tokens)

    def submit(self, request: Request, deliver: Deliver) -> int:
        """Queues a request; returns a ticket to cancel it with.

        Raises:
            BusyError: Too many wait already.
            ClosedError: The service is closing.
            UserError: It was told to `fail` with that.
        """
        with self._changed:
            if self._failure:
                raise self._failure
            if self._closing:
                raise ClosedError("this service is shutting down")
            there = self._batcher.running + self._batcher.waiting + len(self._submitted)
            waiting = there + 1 - self._batcher.slots
            if waiting > self._max_waiting:
                raise BusyError(
                    "too many requests", expected=f"at most {self._max_waiting} that wait", got=str(waiting)
                )
            self._tickets += 1
            self._submitted[self._tickets] = (request, deliver)
            self._changed.notify()
            return self._tickets

    def cancel(self, ticket: int) -> None:
        """Ends a request; nothing more is delivered once this has taken effect, at the next token at the latest."""
        with self._changed:
            if self._submitted.pop(ticket, None) is None:
                self._cancelled.add(ticket)
            self._changed.notify()

    def close(self, timeout: float | None = None) -> bool:
        """Takes no more requests, finishes those that are there, and ends; whether it has, after `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def abort(self) -> None:
        """Ends at once: what runs and what waits gets a `ClosedError`."""
        with self._changed:
            self._closing = True
            self._cancelled |= set(self._names.values())
            refused = [deliver for _, deliver in self._submitted.values()]
            refused += [deliver for name, deliver in self._deliver.items() if name in self._cancelled]
            self._submitted.clear()
            self._changed.notify()
        for deliver in refused:
            deliver(ClosedError("this service was shut down"))
        self._thread.join()

    def fail(self, error: UserError) -> None:
        """What runs, what waits and what comes gets this error, also while a step hangs."""
        with self._changed:
            self._failure = error
            self._closing = True
            left = [*self._deliver.values(), *(deliver for _, deliver in self._submitted.values())]
            self._cancelled |= set(self._names.values())
            self._submitted.clear()
            self._changed.notify()
        for deliver in left:
            deliver(error)

    def _run(self) -> None:
        try:
            while self._take_orders():
                for ticket, outcome in self._batcher.turn():
                    self._hand_out(ticket, outcome)
        except Exception as error:  # noqa: BLE001 - whoever waits must learn of a bug too
            _LOG.exception("the batch ended")
            failure = BackendError("the batch ended", got=repr(error))
            with self._changed:
                self._closing = True
                left = [*self._deliver.values(), *(deliver for _, deliver in self._submitted.values())]
                self._deliver.clear()
                self._submitted.clear()
            for deliver in left:
                deliver(failure)

    def _hand_out(self, ticket: int, outcome: Outcome) -> None:
        with self._changed:
            name = self._names[ticket]
            if name in self._cancelled:
                return
            deliver = self._deliver[name]
            if not isinstance(outcome, Piece) or outcome.finish_reason is not None:
                self._forget(ticket)
        deliver(outcome)

    def _take_orders(self) -> bool:
        """Passes on what was asked for since the last turn; waits while there is nothing to do. False at the end."""
        with self._changed:
            while True:
                self._pass_on()
                if self._batcher.busy:
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _pass_on(self) -> None:
        for name, (request, deliver) in self._submitted.items():
            ticket = self._batcher.submit(request)
            self._names[ticket], self._deliver[name] = name, deliver
        self._submitted.clear()
        if self._cancelled:
            for ticket, name in list(self._names.items()):
                if name in self._cancelled:
                    self._batcher.cancel(ticket)
                    self._forget(ticket)
            self._cancelled.clear()

    def _forget(self, ticket: int) -> None:
        del self._deliver[self._names.pop(ticket)]
