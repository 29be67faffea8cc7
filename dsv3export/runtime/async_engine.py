"""An engine for many callers at once: requests of all of them run in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from os import PathLike
from typing import TYPE_CHECKING

from dsv3export.errors import ResourceError, UserError
from dsv3export.runtime.batching.batcher import Outcome
from dsv3export.runtime.batching.service import BatchService, ServiceState
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.generation import GenerationResult, Piece, Request, joined
from dsv3export.runtime.request_maker import Prompt

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from dsv3export.runtime.request_maker import GenerationOptions


class TooSlowError(ResourceError):
    """A request was not done in the time that it had."""


class AsyncEngine:
    """Continuous batching over an engine, for asyncio. An async context manager: leaving it finishes what runs.

    Args:
        engine: Not to be used otherwise meanwhile. Its `capacity` bounds prompt + new tokens of a request, its
            `max_batch` how many run at once; a cache for all of them is allocated.
        max_waiting: How many more may wait.

    Attributes:
        fault: What it was told to `fail` with; None while all is well.
    """

    def __init__(self, engine: Engine, max_waiting: int = 256) -> None:
        self.engine = engine
        self.batcher = engine.batcher(engine.max_batch, engine.limits.context)
        self._service = BatchService(self.batcher, max_waiting)
        self.fault: UserError | None = None

    @classmethod
    def load(cls, path: str | PathLike[str], threads: int | None = None, *, max_waiting: int = 256, max_batch: int = 8,
             capacity: int | None = None, prefix_cache: int | None = None) -> AsyncEngine:  # fmt: skip
        """As `Engine.load`; see there for errors. Blocks while it loads."""
        engine = Engine.load(path, threads, max_batch=max_batch, capacity=capacity, prefix_cache=prefix_cache)
        return cls(engine, max_waiting)

    @property
    def state(self) -> ServiceState:
        """How many requests run and wait now."""
        return self._service.state

    async def generate(
        self, prompt: Prompt, max_new_tokens: int | None = None, **how: Unpack[GenerationOptions]
    ) -> GenerationResult:
        """As `Engine.generate` for one prompt."""
        request = self.engine.requests.make(prompt, 0, max_new_tokens, **how)
        return joined(request, [piece async for piece in self.run(request)])

    def stream(
        self, prompt: Prompt, max_new_tokens: int | None = None, **how: Unpack[GenerationOptions]
    ) -> AsyncGenerator[Piece, None]:
        """As `Engine.stream`. A caller that stops early (or is cancelled) ends the request."""
        return self.run(self.engine.requests.make(prompt, 0, max_new_tokens, **how))

    async def run(self, request: Request, timeout: float | None = None) -> AsyncGenerator[Piece, None]:
        """The pieces of a request that `Engine.requests` made; `timeout` is in seconds, for all of it.

        Raises:
            TooSlowError: The time was over.
            BusyError: Too many wait already.
            ClosedError: The engine is closing.
            BackendError: The step that computed it failed.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Outcome] = asyncio.Queue()

        def deliver(outcome: Outcome) -> None:
            # A loop that has ended in the meantime has nobody who waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(arrived.put_nowait, outcome)

        ticket = self._service.submit(request, deliver)
        alarm = None
        if timeout is not None:
            late = TooSlowError("this request took too long", expected=f"at most {timeout:g} s")
            alarm = loop.call_later(timeout, arrived.put_nowait, late)
        ended = False
        try:
            while not ended:
                outcome = await arrived.get()
                if isinstance(outcome, UserError):
                    ended = not isinstance(outcome, TooSlowError)
                    raise outcome
                ended = outcome.finish_reason is not None
                yield outcome
        finally:
            if alarm:
                alarm.cancel()
            if not ended:
                self._service.cancel(ticket)

    def fail(self, error: UserError) -> None:
        """All requests, those to come too, end with this error. May be called from any thread."""
        self.fault = error
        self._service.fail(error)

    async def close(self, timeout: float | None = None) -> bool:
        """Finishes what runs and waits, for `timeout` seconds at most, and ends the rest; whether all was finished."""
        finished = await asyncio.to_thread(self._service.close, timeout)
        if not finished:
            await asyncio.to_thread(self._service.abort)
        return finished

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
