"""Exceptions become exit codes and one line, in one place."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import click
import pytest

from dsv3export.cli import failures
from dsv3export.cli.failures import Terminated, exit_code_of
from dsv3export.cli.main import call
from dsv3export.cli.options import Invocation
from dsv3export.errors import ConfigError, InternalError
from tests.support.command_line import assert_refused, run_here, run_process, start

BUG = "internal error (a bug in dsv3export, please report it): "
HINT = ". Run it again with -v for the traceback: dsv3export -v ..."


def report(exception: BaseException, capsys: pytest.CaptureFixture[str], verbose: bool = False) -> tuple[int, str]:
    """Exit code and stderr for a call that raises `exception`."""

    def fail() -> None:
        raise exception

    code = exit_code_of(fail, Invocation(verbose))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("exception", "code", "line"),
    [
        (ConfigError("key", expected="1", got="2", fix="Mend it."), 2, "error: key: expected 1, got 2. Mend it."),
        (ConfigError("two\nlines"), 2, "error: two lines"),
        (click.UsageError("no such thing"), 2, "error: no such thing"),
        (MemoryError(), 2, "error: out of memory: got an allocation that failed"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "error: out of memory: got Unable to allocate 9 TiB"),
        (OSError(errno.ENOSPC, "No space left"), 2, "error: input or output: No space left"),
        (PermissionError(errno.EACCES, "Denied", "/some/file"), 2, "error: /some/file: Denied"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "error: the Python package 'torch' is not installed. Install it with: pip install 'dsv3export[build]'",
        ),
        (
            ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"),
            2,
            "error: the Python package 'onnxruntime' is not installed. Install it with: pip install 'dsv3export[cpu]'",
        ),
        (
            ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers"),
            2,
            "error: the Python package 'tokenizers' is not installed. Install it with: pip install 'dsv3export'",
        ),
        (ModuleNotFoundError("No module named 'colour'", name="colour"), 1, f"{BUG}ModuleNotFoundError: No module"),
        (InternalError("1 is not 2"), 1, f"{BUG}1 is not 2{HINT}"),
        (ZeroDivisionError("division by zero"), 1, f"{BUG}ZeroDivisionError: division by zero{HINT}"),
        (OSError(errno.EBADF, "Bad file descriptor"), 1, f"{BUG}OSError: [Errno 9] Bad file descriptor{HINT}"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, BaseException) else "",
)
def test_exception(exception: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    got, err = report(exception, capsys)
    assert got == code
    assert err.startswith(f"dsv3export: {line}")
    assert err.count("\n") == 1


def test_success_and_requested_exit() -> None:
    def leave() -> None:
        raise click.exceptions.Exit(5)

    assert exit_code_of(lambda: None, Invocation()) == 0
    assert exit_code_of(leave, Invocation()) == 5


@pytest.mark.parametrize("exception", [ConfigError("key"), ZeroDivisionError("0")], ids=["user", "bug"])
def test_verbose_shows_the_traceback_first(exception: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = report(exception, capsys, verbose=True)
    lines = err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("dsv3export: ")
    assert "Run it again" not in lines[-1]


@pytest.mark.parametrize("arguments", [("-v", "inspect", "nowhere"), ("inspect", "nowhere", "--verbose")])
def test_verbose_before_and_after_the_command(arguments: tuple[str, ...]) -> None:
    outcome = run_here(*arguments)
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err_lines[-1].startswith("dsv3export: error: nowhere")


def test_every_optional_package_is_known(root: Path) -> None:
    """Those of the extras that a user installs, by module name."""
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("cpu", "build"):
        for requirement in extras[extra]:
            module = re.split(r"[>=;]", requirement)[0].replace("-", "_")
            assert failures.REQUIREMENT_OF_MODULE[module] == f"dsv3export[{extra}]"


def test_package_whose_metadata_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """`importlib.metadata.version` says it in its own way."""
    code, err = report(PackageNotFoundError("onnxruntime"), capsys)
    assert code == 2
    assert "pip install 'dsv3export[cpu]'" in err


@pytest.mark.parametrize(
    ("package", "body", "says"),
    [
        ("torch", "raise ModuleNotFoundError('No module', name='torch')", "'torch' is not installed"),
        ("torch", "raise ImportError('libtorch.so: cannot open')", "'torch' does not import: libtorch.so: cannot open"),
        ("torch", "", "'torch' does not import: "),
        ("onnxruntime", "raise ImportError('libcudart.so.13: cannot open')", "libcudart.so.13: cannot open"),
        ("tokenizers", "raise ModuleNotFoundError('No module', name='tokenizers')", "'tokenizers' is not installed"),
    ],
    ids=["missing", "broken", "too old", "broken onnxruntime", "missing tokenizers"],
)
def test_package_that_does_not_import(
    package: str, body: str, says: str, tiny_fp8: Path, tiny_engine: Path, tmp_path: Path
) -> None:
    """Another module of that name stands in front of the package."""
    (tmp_path / f"{package}.py").write_text(body)
    build = ("build", tiny_fp8, "-o", tmp_path / "engine")
    command = build if package == "torch" else ("run", tiny_engine, "--prompt", "x")
    outcome = run_process(*command, env={"PYTHONPATH": str(tmp_path)})
    assert_refused(outcome, (says, "pip install 'dsv3export"), tmp_path)


def test_reader_that_goes_away(tiny_engine: Path) -> None:
    """`dsv3export run ... | head -c 1`: a quiet end."""
    process = start("run", tiny_engine, "--prompt", "x", "--ignore-eos", "--max-new-tokens", "1000")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.close()
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, b"")
    process.stderr.close()


def test_full_disk_behind_stdout(tiny_engine: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with open("/dev/full", "wb") as full:
        process = start("run", tiny_engine, "--prompt", "x", "--json", "--max-new-tokens", "1", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == b"dsv3export: error: input or output: No space left on device\n"


def test_the_handler_of_sigterm_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert call(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_works_outside_the_main_thread() -> None:
    codes = []
    thread = threading.Thread(target=lambda: codes.append(call(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_stdout_without_a_file_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    """The reader is gone, and stdout is an object in memory: still a quiet end."""
    assert report(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), capsys) == (141, "")
