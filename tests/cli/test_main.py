"""The frame: the table of commands, help, version, completion."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import dsv3export
from dsv3export.cli.lazy_group import CommandEntry, LazyGroup
from dsv3export.cli.main import COMMANDS, cli
from tests.support.command_line import run_here, run_process

NAMES = [entry.name for entry in COMMANDS]


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_each_command_is_in_the_file_of_its_name(entry: CommandEntry) -> None:
    assert entry.module == f"dsv3export.cli.{entry.name}"
    command = importlib.import_module(entry.module).command
    assert isinstance(command, click.Command)
    assert command.name == entry.name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_each_command_has_examples(name: str, flag: str) -> None:
    outcome = run_here(name, flag)
    assert (outcome.code, outcome.err) == (0, "")
    examples = outcome.out.split("\nExamples:\n")[1].splitlines()
    assert all(line.strip().startswith("dsv3export ") for line in examples)
    assert any(line.strip().startswith(f"dsv3export {name} ") for line in examples)
    assert "--verbose" in outcome.out


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(arguments: tuple[str, ...]) -> None:
    outcome = run_here(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    commands, examples = outcome.out.split("\nCommands:\n")[1].split("\nExamples:\n")
    listed = [line.split()[0] for line in commands.splitlines()]
    assert examples.startswith("  dsv3export build examples/tiny-dsv3 -o tiny.engine\n")
    assert listed == NAMES
    assert all(entry.summary in outcome.out for entry in COMMANDS)


def test_help_loads_no_command() -> None:
    program = "import sys; from dsv3export.cli.main import call; call(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "dsv3export.cli.main" in loaded
    assert loaded & {entry.module for entry in COMMANDS} == set()
    assert loaded & {"rich", "numpy"} == set()


def test_version() -> None:
    outcome = run_here("--version")
    assert (outcome.code, outcome.out) == (0, f"dsv3export {dsv3export.__version__}\n")


def test_two_commands_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        LazyGroup((COMMANDS[0], COMMANDS[0]), name="twice", examples=())


def test_a_module_without_a_command_is_refused() -> None:
    group = LazyGroup((CommandEntry("main", "dsv3export.cli.main", ""),), name="group", examples=())
    with pytest.raises(TypeError, match="no click command"):
        group.get_command(click.Context(cli), "main")


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --")])
def test_completion_script(shell: str, word: str) -> None:
    outcome = run_here("completion", shell)
    assert (outcome.code, outcome.err) == (0, "")
    assert word in outcome.out
    assert "_DSV3EXPORT_COMPLETE" in outcome.out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("dsv3export in", ["plain,inspect"]),
        ("dsv3export build x --precision int", ["plain,int8", "plain,int4"]),
        ("dsv3export run --max", ["plain,--max-new-tokens"]),
    ],
)
def test_completions(typed: str, expected: list[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    outcome = run_process(env={"_DSV3EXPORT_COMPLETE": "bash_complete", **words})
    assert (outcome.code, outcome.out.split()) == (0, expected)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    (tmp_path / "completion.bash").write_text(run_here("completion", "bash").out)
    (tmp_path / "dsv3export").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dsv3export "$@"\n')
    (tmp_path / "dsv3export").chmod(0o755)
    script = (
        f"source {tmp_path}/completion.bash; COMP_WORDS=(dsv3export do); COMP_CWORD=1; "
        '_dsv3export_completion dsv3export; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert done.stdout == "doctor\n"
