"""Builds that are killed, at any moment, and go on: the same bytes come out."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.journal import JOURNAL_NAME
from dsv3export.engine.staging import LOCK_NAME
from dsv3export.graphs import weight_units
from dsv3export.graphs.build import build_engine
from tests.support.altered import linked_copy
from tests.support.synthetic import random_checkpoint, tiny_config

KILLS = 50
UNITS = 60  # about as many as the model below has
# A server of builds: for each line [checkpoint, out, threads] it forks a child that builds, so that torch is imported
# and the model traced once; it answers with the child's process id and, at its end, with its status. Units are small.
SERVER = """
import json, os, sys
from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs import build, graph_for, weight_units
weight_units.UNIT_ELEMENTS = 2000
config = Checkpoint.open(sys.argv[1]).config
for part in ["trunk", "mtp"] if config.mtp_layer_ids else ["trunk"]:
    graph_for(config, part)  # what is traced here is in the children
for line in sys.stdin:
    checkpoint, out, threads = json.loads(line)
    child = os.fork()
    if child == 0:
        build.build_engine(checkpoint, out, precision="int4", threads=threads)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def contents(engine: Path) -> dict[str, bytes | dict[str, Any]]:
    """All files; engine.json without the modification times of the files that it lists."""
    found: dict[str, bytes | dict[str, Any]] = {
        str(path.relative_to(engine)): path.read_bytes()
        for path in engine.rglob("*")
        if path.is_file() and path.name not in (LOCK_NAME, JOURNAL_NAME)  # left by a kill after the last rename
    }
    manifest = json.loads((engine / "engine.json").read_text())
    for record in manifest["files"].values():
        del record["mtime_ns"]
    return {**found, "engine.json": manifest}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(hidden_size=128, moe_intermediate_size=128, num_hidden_layers=3)
    return random_checkpoint(tmp_path_factory.mktemp("killed") / "checkpoint", config, seed=3)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_units, "UNIT_ELEMENTS", 2000)


@pytest.fixture
def uninterrupted(checkpoint: Path, tmp_path: Path, small_units: None) -> dict[str, bytes | dict[str, Any]]:
    build_engine(checkpoint, tmp_path / "uninterrupted", precision="int4")
    return contents(tmp_path / "uninterrupted")


def wait_for_units(partial: Path, count: int, target: Path) -> None:
    """Until so many units are in the journal, or the engine is there."""
    journal, deadline = partial / JOURNAL_NAME, time.monotonic() + 30
    while not target.exists() and time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if journal.read_bytes().count(b"\n") > count:
                return
        time.sleep(0.0005)


@pytest.mark.slow
def test_killed_at_many_moments(
    checkpoint: Path, uninterrupted: dict[str, bytes | dict[str, Any]], tmp_path: Path, root: Path
) -> None:
    """After a random time, or when a random number of units is finished; some builds end before that."""
    chance = random.Random(0)
    target, partial = tmp_path / "engine", tmp_path / "engine.partial"
    kills = went_on = 0
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(checkpoint)], cwd=root, stdin=-1, stdout=-1, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        longest = 0.5
        while kills < KILLS or not target.exists():
            went_on += (partial / JOURNAL_NAME).exists()
            server.stdin.write(json.dumps([str(checkpoint), str(target), chance.choice([1, 2, 3])]) + "\n")
            server.stdin.flush()
            child, started = int(server.stdout.readline()), time.monotonic()
            if kills < KILLS:
                if chance.random() < 0.3:
                    time.sleep(chance.uniform(0, longest))
                else:
                    wait_for_units(partial, chance.randint(0, UNITS), target)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            status = int(server.stdout.readline())
            assert status in (0, signal.SIGKILL)
            kills += status == signal.SIGKILL
            assert target.exists() or status != 0
            if target.exists():  # which it may be although the build was killed: right after the last rename
                longest = 0.9 * longest + 0.1 * (time.monotonic() - started)
                assert contents(target) == uninterrupted
                assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "uninterrupted"]
                if kills < KILLS:
                    shutil.rmtree(target)
        server.stdin.close()
    assert went_on > KILLS / 5  # else the moments were no good


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_a_byte(
    checkpoint: Path, uninterrupted: dict[str, bytes | dict[str, Any]], threads: int, tmp_path: Path
) -> None:
    build_engine(checkpoint, tmp_path / "engine", precision="int4", threads=threads)
    assert contents(tmp_path / "engine") == uninterrupted


class Stop:
    """Progress that interrupts the build after some bytes, and keeps the notes."""

    def __init__(self, after: int) -> None:
        self.after, self.notes = after, list[str]()

    def start(self, title: str, total: int, unit: str) -> None:
        self.title, self.done = title, 0

    def advance(self, amount: int) -> None:
        self.done += amount
        if self.title == "writing weights" and self.done > self.after:
            raise KeyboardInterrupt

    def finish(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


NEVER = 1 << 60


@pytest.mark.parametrize("change", ["nothing", "recipe", "modified", "copy_weights"])
def test_changed_inputs_start_anew(checkpoint: Path, change: str, tmp_path: Path, small_units: None) -> None:
    source = linked_copy(checkpoint, tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        build_engine(source, tmp_path / "engine", precision="int4", progress=Stop(300_000))
    options: dict[str, Any] = {"precision": "int4"}
    if change == "recipe":
        options = {"precision": "int8"}
    elif change == "copy_weights":  # of this checkpoint nothing is left by reference: the same plan either way
        options["copy_weights"] = True
    elif change == "modified":
        file = source / "model.safetensors"
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data)
    progress = Stop(NEVER)
    report = build_engine(source, tmp_path / "engine", progress=progress, **options)
    anew = change in ("recipe", "modified")
    assert (report.resumed_bytes == 0) == anew
    assert ("starts anew" in "".join(progress.notes)) == anew
    build_engine(source, tmp_path / "fresh", **options)
    assert contents(tmp_path / "engine") == contents(tmp_path / "fresh")
