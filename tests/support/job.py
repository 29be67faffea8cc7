"""Jobs of several ranks as a user starts them, and what can happen to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Job:
    """A launcher that runs, and the ranks that it started."""

    process: subprocess.Popen[str]

    def ranks(self) -> dict[int, psutil.Process]:
        """By rank, those that are there now."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, KeyError):
                found[int(child.environ()["RANK"])] = child
        return found

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended by itself."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def wait_for(self, said: str, timeout: float = 60) -> str:
        """Reads stderr up to the line that has `said` in it, and returns that."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + timeout
        lines = []
        while time.monotonic() < deadline:
            line = self.process.stderr.readline()
            lines.append(line)
            if said in line:
                return line
            if not line:
                break
        raise AssertionError(f"{said!r} was not said: {''.join(lines)}")


@contextmanager
def job(*arguments: str | Path, prefix: Sequence[str] = (), env: dict[str, str] | None = None) -> Iterator[Job]:
    """`dsv3export ARGUMENTS`, behind `prefix`; whatever is left of it afterwards is killed."""
    command = [*prefix, sys.executable, "-m", "dsv3export", *(str(argument) for argument in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    children: list[psutil.Process] = []
    try:
        yield Job(process)
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()
        process.communicate()
