"""A server as its users start it, over the trained model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Running:
    """A server that listens at `url`; its log is read after its end."""

    url: str
    process: subprocess.Popen[str]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it said on stderr after it began to listen."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def serving(engine: Path, *options: str) -> Iterator[Running]:
    """`dsv3export serve` on a free port."""
    command = [sys.executable, "-m", "dsv3export", "serve", str(engine), "--port", "0", "--threads", "1", *options]
    environment = {name: value for name, value in os.environ.items() if name != "DSV3EXPORT_API_KEY"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            found = re.search(r" on (http://\S+), ", said)
            assert found, said + process.stderr.read()
            yield Running(found[1], process)
        finally:
            process.kill()


@pytest.fixture(scope="package")
def server(tiny_engine: Path) -> Iterator[Running]:
    with serving(tiny_engine, "--slots", "4", "--model-name", "tiny") as running:
        yield running
