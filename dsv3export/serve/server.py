"""Runs the application until it is told to stop, and then to the end of what runs."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from dsv3export.errors import ResourceError

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0 finds a free one. Raises ResourceError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ResourceError(
            f"cannot listen on {host}:{port}", got=reason, fix="Choose another --port or --host."
        ) from None


def address(listening: socket.socket) -> str:
    """The URL that reaches it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """SIGTERM or SIGINT: takes no more connections, finishes what runs, ends; a second signal ends at once.

    Args:
        drain_seconds: How long what runs may take.
        look: Whether a fault is what the signal is for, in a thread of its own; then the server goes on, to say so,
            until whoever found the fault ends the process.
    """

    def __init__(self, app: FastAPI, drain_seconds: int, look: Callable[[], object] | None = None) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=drain_seconds, timeout_keep_alive=30,
        )  # fmt: skip
        super().__init__(config)
        self._app, self._look = app, look
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are taken by the loop; unlike uvicorn's own, they are not raised again after the end."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self._look and not self._looking:
            self._looking = asyncio.create_task(self._stop_unless_faulty(self._look))
            return
        self._end()

    async def _stop_unless_faulty(self, look: Callable[[], object]) -> None:
        if not await asyncio.to_thread(look):
            self._end()

    def _end(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._app.state.server.stopping = True
