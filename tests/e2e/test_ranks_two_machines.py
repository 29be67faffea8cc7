"""Two machines, which are two network namespaces joined by a pair of virtual interfaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from dsv3export.engine.parallel import Layout
from dsv3export.runtime.engine import Engine
from tests.support.job import ROOT

pytestmark = pytest.mark.slow

BOUND = 6
SLACK = 4  # of a machine that does other work too
FIRST, SECOND = "10.213.7.1", "10.213.7.2"


@dataclass(frozen=True)
class Machines:
    """Their namespaces; each has an interface of the same name."""

    first: str
    second: str

    def cut(self) -> None:
        """The link between them goes down; nobody is told."""
        ip("-n", self.second, "link", "set", self.second, "down")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    names = Machines(f"dsv3a{os.getpid()}"[:15], f"dsv3b{os.getpid()}"[:15])
    both = ((names.first, FIRST), (names.second, SECOND))
    with ExitStack() as undo:
        for name, _ in both:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
            undo.callback(ip, "netns", "del", name)
        ip("link", "add", names.first, "netns", names.first, "type", "veth", "peer", "name", names.second,
           "netns", names.second)  # fmt: skip
        for name, address in both:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", name, "up")
        yield names


@contextmanager
def torchrun(machine: str, number: int, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """One machine's launcher with one rank; it and its rank are killed afterwards if they are left."""
    launcher = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", FIRST,
                "--master-port", "29511", "--node-rank", str(number))  # fmt: skip
    command = ["ip", "netns", "exec", machine, sys.executable, *launcher, "-m", "dsv3export", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        yield process
    finally:
        process.kill()  # its ranks end with it
        process.communicate()


def listening(machine: str) -> set[str]:
    """Addresses and ports at which something listens there."""
    command = ["ip", "netns", "exec", machine, "ss", "-Hltn"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[3] for line in said.splitlines()}


def test_two_machines(rank_engine: Callable[[Layout], Path], machines: Machines, tiny_engine: Path) -> None:
    """They compute what one does, and where the link between them is cut, both end and say so."""
    right = Engine.load(tiny_engine, threads=1).generate([5, 17, 99, 200], 6).token_ids
    engine = rank_engine(Layout(2, 1, 1))
    run = ("run", engine, "--prompt-ids", "5,17,99,200", "--max-new-tokens", "6", "--json")
    with torchrun(machines.first, 0, *run) as first, torchrun(machines.second, 1, *run) as second:
        out, err = first.communicate(timeout=60)
        assert second.wait(timeout=60) == 0
    assert json.loads(out)["token_ids"] == right, err


def test_a_link_that_is_cut(rank_engine: Callable[[Layout], Path], machines: Machines, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    request = {"prompt_token_ids": [5, 17], "max_new_tokens": 100, "ignore_eos": True}
    file.write_text(f"{json.dumps(request)}\n" * 500)
    run = ("run", rank_engine(Layout(2, 1, 1)), "--input-file", file, "--fault-timeout", str(BOUND))
    with torchrun(machines.first, 0, *run) as first, torchrun(machines.second, 1, *run) as second:
        assert first.stdout is not None
        assert second.stderr is not None
        first.stdout.readline()
        assert {place.rpartition(":")[0] for place in listening(machines.first)} <= {FIRST, "*"}
        assert {place.rpartition(":")[0] for place in listening(machines.second)} <= {SECOND}
        ranks = {each: rank_below(each.pid) for each in (first, second)}
        machines.cut()
        since = time.monotonic()
        while any(is_running(pid) for pid in ranks.values()):
            assert time.monotonic() - since < BOUND + SLACK
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        second.send_signal(signal.SIGKILL)
        near, far = first.communicate()[1], second.communicate()[1]
    assert near.count("dsv3export: error: rank 1 on ") == 1, near
    assert far.count("dsv3export: error: rank 0 on ") == 1, far
    assert "not heard of" in near
    assert "is lost to rank 1" in far


def rank_below(launcher: int) -> int:
    """The process that a launcher started."""
    return next(child.pid for child in psutil.Process(launcher).children(recursive=True) if "RANK" in child.environ())


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
