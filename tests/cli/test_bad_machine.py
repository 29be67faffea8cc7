"""Builds that the machine or the user stops, targets that are taken, checkpoints that change under an engine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3export.engine.writer import EngineWriter
from tests.support.altered import edit_bytes, linked_copy, replace_file
from tests.support.command_line import Outcome, assert_refused, run_here, run_process

FIRST = "model-00001-of-000002.safetensors"

# Runs `dsv3export build CHECKPOINT -o TARGET` and sends itself SIGNAL after 1 MiB of weights.
STOPPED_BUILD = """
import contextlib, os, sys
import dsv3export.cli.build as build
from dsv3export.cli.main import call

class Stop:
    written = 0
    def start(self, title, total, unit): pass
    def finish(self): pass
    def note(self, text): pass
    def advance(self, amount):
        self.written += amount
        if self.written > 1 << 20:
            os.kill(os.getpid(), int(sys.argv[3]))

build.progress_on_stderr = lambda quiet: contextlib.nullcontext(Stop())
sys.exit(call(["build", sys.argv[1], "-o", sys.argv[2]]))
"""


def stopped_build(checkpoint: Path, target: Path, number: signal.Signals) -> Outcome:
    """A build in a process of its own, which gets a signal while it writes weights."""
    command = [sys.executable, "-c", STOPPED_BUILD, str(checkpoint), str(target), str(int(number))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # A shell's background job ignores it, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_file_size_limit(tiny_fp8: Path, tmp_path: Path) -> None:
    """A quota: the limit on the size of a file is below that of the weights."""
    command = [sys.executable, "-m", "dsv3export", "build", str(tiny_fp8), "-o", str(tmp_path / "engine")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert_refused(outcome, ("cannot write", "/engine", "File too large"), tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"), [("size=4m", "disk space"), ("ro", "Read-only file system")], ids=["full", "read-only"]
)
def test_disk(options: str, reason: str, tiny_fp8: Path, tmp_path: Path) -> None:
    """A small and a read-only disk, mounted in a namespace of their own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    probe = [*mount, f'mount -t tmpfs -o {options} none "$0"', str(disk)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk in a namespace")
    script = (
        f'mount -t tmpfs -o {options} none "$0" && "$1" -m dsv3export build "$2" -o "$0/engine"; code=$?; ls -A "$0"; '
        "exit $code"
    )
    command = [*mount, script, str(disk), sys.executable, str(tiny_fp8)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), (reason,), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tiny_fp8: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    outcome = run_here("build", tiny_fp8, "-o", tmp_path / "closed" / "engine")
    assert_refused(outcome, ("/closed/engine", "Permission denied"), tmp_path)


def test_target_that_is_an_engine(tiny_fp8: Path, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    assert run_here("build", tiny_fp8, "-o", target, "--quiet").code == 0
    built = (target / "engine.json").stat().st_mtime_ns
    assert_refused(run_here("build", tiny_fp8, "-o", target), ("/taken", "--force"), tmp_path)
    assert (target / "engine.json").stat().st_mtime_ns == built
    assert run_here("build", tiny_fp8, "-o", target, "--force").code == 0
    assert (target / "engine.json").stat().st_mtime_ns != built
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_failed_build_with_force_leaves_the_old_engine(tiny_fp8: Path, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    assert run_here("build", tiny_fp8, "-o", target).code == 0
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    edit_bytes(checkpoint / FIRST, lambda data: data[:-8])
    assert_refused(run_here("build", checkpoint, "-o", target, "--force"), (FIRST,), tmp_path)
    assert run_here("run", target, "--prompt", "x", "--max-new-tokens", "1").code == 0


def test_target_with_other_content_is_never_replaced(tiny_fp8: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("all my work")
    outcome = run_here("build", tiny_fp8, "-o", tmp_path / "thesis", "--force")
    assert_refused(outcome, ("/thesis", "other content"), tmp_path)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "all my work"


def test_second_build_of_one_target(tiny_fp8: Path, tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine"):
        outcome = run_here("build", tiny_fp8, "-o", tmp_path / "engine")
    assert_refused(outcome, ("another build", "/engine.partial"), tmp_path)


def test_killed_build_leaves_no_engine_and_the_next_one_succeeds(tiny_fp8: Path, tmp_path: Path) -> None:
    target = tmp_path / "engine"
    assert stopped_build(tiny_fp8, target, signal.SIGKILL).code == -signal.SIGKILL
    assert not target.exists()
    assert_refused(run_here("run", target, "--prompt", "x"), ("/engine", "nothing there"), tmp_path / "elsewhere")
    assert run_here("build", tiny_fp8, "-o", target).code == 0
    assert run_here("run", target, "--prompt", "x", "--max-new-tokens", "1").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine"]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_build_can_go_on(number: signal.Signals, code: int, word: str, tiny_fp8: Path, tmp_path: Path) -> None:
    outcome = stopped_build(tiny_fp8, tmp_path / "engine", number)
    partial = tmp_path / "engine.partial"
    said = f"dsv3export: {word}: run the same command again to go on with {partial}"
    assert (outcome.code, outcome.out, outcome.err_lines) == (code, "", [said])
    assert list(tmp_path.iterdir()) == [partial]
    facts = json.loads(run_here("build", tiny_fp8, "-o", tmp_path / "engine", "--json").out)
    assert 1 << 20 < facts["resumed_bytes"] < facts["weights"]["stored"]["bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def _move(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name("moved"))


def _relabel(checkpoint: Path) -> None:
    """Another dtype in the header, of the same length."""
    edit_bytes(checkpoint / FIRST, lambda data: data.replace(b"F8_E4M3", b"F8_E5M2", 1))


def _touch(checkpoint: Path) -> None:
    replace_file(checkpoint / FIRST, (checkpoint / FIRST).read_bytes())
    os.utime(checkpoint / FIRST, (time.time() + 60, time.time() + 60))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_move, ("/checkpoint", "--copy-weights")),
        (lambda checkpoint: (checkpoint / FIRST).unlink(), (f"/checkpoint/{FIRST}",)),
        (lambda checkpoint: edit_bytes(checkpoint / FIRST, lambda data: data[:-8]), (f"/checkpoint/{FIRST}", "size")),
        (_relabel, (f"/checkpoint/{FIRST}", "header")),
        (_touch, (f"/checkpoint/{FIRST}", "modified")),
    ],
    ids=["moved", "shard gone", "shard cut", "header altered", "shard modified"],
)
def test_checkpoint_that_changed_after_the_build(
    change: Callable[[Path], object], says: tuple[str, ...], tiny_fp8: Path, tmp_path: Path
) -> None:
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    assert run_here("build", checkpoint, "-o", tmp_path / "built").code == 0
    change(checkpoint)
    assert_refused(run_here("run", tmp_path / "built", "--prompt", "x"), says, tmp_path)


def test_copied_weights_outlive_the_checkpoint(tiny_fp8: Path, tmp_path: Path) -> None:
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    assert run_here("build", checkpoint, "-o", tmp_path / "built", "--copy-weights").code == 0
    shutil.rmtree(checkpoint)
    assert run_here("run", tmp_path / "built", "--prompt", "x", "--max-new-tokens", "1").code == 0


def test_checkpoint_without_tokenizer_gives_an_engine_of_token_ids(tiny_fp8: Path, tmp_path: Path) -> None:
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").unlink()
    assert run_here("build", checkpoint, "-o", tmp_path / "built").code == 0
    assert_refused(run_here("run", tmp_path / "built", "--prompt", "x"), ("tokenizer", "/built"), tmp_path)
    assert run_here("run", tmp_path / "built", "--prompt-ids", "0,5", "--max-new-tokens", "1").code == 0


def test_the_same_in_a_process_of_its_own(tiny_fp8: Path, tiny_engine: Path, tmp_path: Path) -> None:
    """Exit codes and streams as the shell sees them."""
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    edit_bytes(checkpoint / FIRST, lambda data: data[:-1000])
    assert_refused(run_process("build", checkpoint, "-o", tmp_path / "engine"), (FIRST, "truncated"), tmp_path)
    assert_refused(run_process("run", tiny_engine, "--prompt", b"a\xffb"), ("--prompt", "UTF-8"), tmp_path)
    assert_refused(run_process("run", tiny_engine, "--prompt", "-", stdin=b"\xff"), ("stdin", "UTF-8"), tmp_path)
    assert_refused(run_process("inspect", tmp_path / "nothing"), ("/nothing", "nothing there"), tmp_path)
