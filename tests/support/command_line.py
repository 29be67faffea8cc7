"""Runs `dsv3export` command lines, in this process or in one of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest import mock

from dsv3export.cli.main import call


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def err_lines(self) -> list[str]:
        return self.err.splitlines()


def run_here(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
    """In this process: quick, as torch is imported once for all."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2))
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with mock.patch("sys.stdout", out), mock.patch("sys.stderr", err), mock.patch("sys.stdin", given):
        code = call([str(argument) for argument in arguments])
    written = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]  # type: ignore[attr-defined]
    return Outcome(code, *written)


def start(
    *arguments: str | Path | bytes, env: Mapping[str, str] | None = None, stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """In a process of its own, with pipes for what is not given."""
    command = [sys.executable, "-m", "dsv3export", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=stdout, stderr=pipe, env={**os.environ, **(env or {})})


def run_process(*arguments: str | Path | bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Outcome:
    """In a process of its own, to its end."""
    process = start(*arguments, env=env)
    out, err = process.communicate(stdin, timeout=120)
    return Outcome(process.returncode, out.decode("utf-8"), err.decode("utf-8"))


def assert_refused(outcome: Outcome, says: Sequence[str], folder: Path) -> None:
    """Exit code 2, one line on stderr with all of `says` in it, and nothing on stdout.

    `folder` is that of the test; its name, which tells the case, does not count. Nothing is left there that is called
    "engine" or begins so.
    """
    assert outcome.code == 2, outcome
    assert len(outcome.err_lines) == 1, outcome.err
    line = outcome.err_lines[0].replace(str(folder), "")
    assert line.startswith("dsv3export: error: ")
    assert [text for text in says if text not in line] == [], line
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert list(folder.glob("engine*")) == []
