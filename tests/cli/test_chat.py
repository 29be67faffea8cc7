"""`dsv3export run --interactive`, from a pipe and from a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsv3export import Engine
from dsv3export.runtime.conversation import Conversation
from tests.support.command_line import run_here

FIRST, SECOND = "Continue: And the LORD said unto Moses,", "And then?"


def expected(engine: Path, *messages: str, system: str | None = None) -> list[str]:
    conversation = Conversation.with_engine(Engine.load(engine, threads=1), system)
    return ["".join(piece.text for piece in conversation.say(each, 12)) for each in messages]


def test_a_conversation_from_a_pipe(tiny_engine: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [FIRST, "", SECOND, f"/save {saved}", "/reset", FIRST, "/system Sing.", FIRST, "/exit", "never read"]
    outcome = run_here("run", tiny_engine, "-i", "--max-new-tokens", "12", stdin="\n".join(lines).encode())
    two, sung = expected(tiny_engine, FIRST, SECOND), expected(tiny_engine, FIRST, system="Sing.")
    assert outcome.code == 0
    assert outcome.out == "".join(f"{each}\n" for each in [*two, two[0], *sung])
    assert outcome.err == f"wrote {saved}\n"
    assert [message["content"] for message in json.loads(saved.read_text())["messages"]] == [
        FIRST, two[0], SECOND, two[1],
    ]  # fmt: skip


def test_mistakes_are_told_and_do_not_end_it(tiny_engine: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    lines = ["/nothing", "/system", f"/save {taken}", "and " * 2000, SECOND]
    options = ("-i", "--max-new-tokens", "12", "--stats")
    outcome = run_here("run", tiny_engine, *options, stdin="\n".join(lines).encode())
    assert (outcome.code, outcome.out) == (0, expected(tiny_engine, SECOND)[0] + "\n")
    said = outcome.err_lines
    assert len(said) == 5
    for line, text in zip(said, ("'/nothing'", "'/system'", "File exists", "1024", "tokens/s"), strict=True):
        assert text in line
    assert taken.read_text() == "mine"


@dataclass
class Terminal:
    """The other end of a program's terminal."""

    descriptor: int
    process: subprocess.Popen[bytes]
    _shown: str = ""

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until some text is shown; what comes behind it is for the next call."""
        until = time.monotonic() + seconds
        while text not in self._shown:
            assert time.monotonic() < until, self._shown
            if select.select([self.descriptor], [], [], 0.5)[0]:
                self._shown += os.read(self.descriptor, 65536).decode("utf-8", "replace")
        self._shown = self._shown.partition(text)[2]


@contextmanager
def terminal(*arguments: str | Path, home: Path) -> Iterator[Terminal]:
    """The program on a terminal of its own, where Ctrl-C counts even if whoever started the tests ignores it."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    command = ["env", "--default-signal=INT", sys.executable, "-m", "dsv3export", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("drafts", ["0", "1"])
def test_a_terminal_edits_stops_and_remembers(tiny_engine: Path, tmp_path: Path, drafts: str) -> None:
    begins = expected(tiny_engine, "Told")[0].split("\n")[0][:8]
    assert begins
    options = ("--interactive", "--max-new-tokens", "900", "--ignore-eos", "--threads", "1", "--speculate", drafts)
    with terminal("run", tiny_engine, *options, home=tmp_path) as shown:
        shown.wait_for("leaves.")
        shown.wait_for(">")
        shown.type(b"Tolx\x7fd\r")  # a mistake, and backspace
        shown.wait_for(begins)
        shown.process.send_signal(signal.SIGINT)
        shown.wait_for("[stopped]")
        shown.wait_for(">")
        shown.type(b"/help\r")
        shown.wait_for("breaks a line.")
        shown.wait_for(">")
        shown.type(b"\x04")
        assert shown.process.wait(60) == 0
    history = (tmp_path / "dsv3export" / "history").read_text()
    assert "+Told" in history and "+/help" in history
