"""Starting is cheap: nothing heavy is imported before it is needed, and `run` never needs the build's packages."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BUILD_PACKAGES = {"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors"}
# What a command's help has no use for either, and what the library's own import has not.
BACKENDS = {"onnxruntime", "tokenizers"}
ARRAYS = {"numpy", "ml_dtypes"}
HELP_SECONDS = 0.3

REPORT_MODULES = "import sys, json; print('\\n' + json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded in a new interpreter after `code`."""
    command = [sys.executable, "-c", f"{code}\n{REPORT_MODULES}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules_after_command(*arguments: str) -> set[str]:
    """The same after ``dsv3export ARGUMENTS``, which must succeed."""
    return modules_after(f"from dsv3export.cli.main import call\nassert call({list(arguments)!r}) == 0")


def cpu_seconds(*command: str) -> float:
    """User and system time of one process: steadier than the clock on a machine that does other work too."""
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


def test_help_answers_at_once() -> None:
    program = str(Path(sys.executable).with_name("dsv3export"))
    seconds = [cpu_seconds(program, "--help") for _ in range(7)]
    assert statistics.median(seconds) < HELP_SECONDS, seconds


def test_importing_the_library_imports_nothing_heavy() -> None:
    assert modules_after("import dsv3export; dsv3export.UserError") & (BUILD_PACKAGES | BACKENDS | ARRAYS) == set()


def test_help_imports_nothing_heavy() -> None:
    assert modules_after_command("--help") & (BUILD_PACKAGES | BACKENDS | ARRAYS) == set()


@pytest.mark.parametrize(
    "command",
    ["build", "run", "diff", "golden", "report", "sensitivity", "inspect", "plan", "graph", "doctor", "completion"],
)
def test_help_of_a_command_imports_neither_backend_nor_build_package(command: str) -> None:
    assert modules_after_command(command, "--help") & (BUILD_PACKAGES | BACKENDS) == set()


def test_engine_class_imports_no_build_package() -> None:
    assert modules_after("from dsv3export import Engine, GenerationResult") & BUILD_PACKAGES == set()


def test_run_imports_no_build_package(tiny_engine: Path) -> None:
    loaded = modules_after_command(
        "run", str(tiny_engine), "--prompt", "And it came", "--max-new-tokens", "3", "--json"
    )
    assert "onnxruntime" in loaded
    assert loaded & BUILD_PACKAGES == set()


def test_public_names() -> None:
    import dsv3export

    assert (
        sorted(dsv3export.__all__)
        == dir(dsv3export)
        == ["AsyncEngine", "Engine", "GenerationResult", "UserError", "__version__"]
    )
    for name in dsv3export.__all__:
        assert getattr(dsv3export, name)
    with pytest.raises(AttributeError, match="has no attribute 'Engin'"):
        _ = dsv3export.Engin
