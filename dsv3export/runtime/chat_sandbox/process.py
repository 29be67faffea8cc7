"""The process that runs a template, as its user sees it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from dsv3export.runtime.chat_sandbox import worker

CPU_SECONDS = 2
# Of a clock on the wall, on a machine that has much else to do.
_PATIENCE = 60.0
_LENGTH_BYTES = 8


class TemplateError(Exception):
    """The template is none, refuses what it got, or took more time or memory than it may."""


class TemplateProcess:
    """Renders one template. Threads may share it: they take turns.

    A process that had to be ended is replaced at the next call.

    Raises TemplateError for a text that is no template.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., TemplateProcess] | None = None
        with self._turn:
            self._start()

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text. Raises TemplateError, and TypeError or ValueError for variables that JSON does not have."""
        message = worker.frame(variables)
        with self._turn:
            if self._process is None:
                self._start()
            return self._ask(message)

    def _start(self) -> None:
        # A session of its own: Ctrl-C in a terminal is for the one who asked.
        command = [sys.executable, "-B", str(Path(worker.__file__)), str(CPU_SECONDS)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._end = weakref.finalize(self, _ended, self._process)
        self._ask(worker.frame(self._source))

    def _ask(self, message: bytes) -> str:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(message)
            process.stdin.flush()
            answer = _answer(process.stdout.fileno(), time.monotonic() + _PATIENCE)
        except BaseException as error:
            assert self._end is not None
            self._end()
            self._process = None
            if isinstance(error, (EOFError, TimeoutError, BrokenPipeError)):
                raise TemplateError(f"more than {CPU_SECONDS} seconds") from None
            raise
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])


def _answer(descriptor: int, deadline: float) -> Any:
    """The next message. Raises EOFError, TimeoutError."""
    head = _read(descriptor, _LENGTH_BYTES, deadline)
    return worker.read_frame(BytesIO(head + _read(descriptor, int.from_bytes(head, "little"), deadline)))


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        # poll, as select cannot watch descriptors from 1024 on, which a server has
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        part = os.read(descriptor, min(count - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not written yet has no reader any more
                pipe.close()
    process.wait()
