"""The documentation is run: commands in ``console`` blocks, scripts in ``python`` blocks; links lead somewhere.

In a ``console`` block each line that begins with ``$ `` is a command, and the lines below it are what it prints, where
``...`` stands for any text. The blocks of a page run in order, in a folder that looks like a fresh clone. Blocks with
another word after the fence (``text``, ``sh``, ...) are not run; of ``sh`` blocks the programs and options must exist.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dsv3export.cli.main import cli
from tests.support.markdown import anchors, blocks, commands, links

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {".venv", ".git", "build", "dist"}
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in NOT_OURS]
PAGES = sorted(
    page.relative_to(ROOT)
    for page in [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))]
)
# Commands that are not run here, and why.
EXEMPT = {
    "git clone": "the clone is the tree under test",
    "cd dsv3export": "the commands run inside the clone",
    "make setup": "the tests run in what it makes",
    "make demo": ".ci/run runs it",
    "make test": "it runs this test",
    "make lint": ".ci/run runs it",
    "make coverage": "it runs this test",
    "pip install": "what it installs is tested in tests/packaging",
    "pre-commit install": "it would change the repository's hooks",
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder like a fresh clone after `make setup`: own examples, the rest linked, .venv the running environment."""
    for entry in ROOT.iterdir():
        if entry.name not in NOT_OURS | {"examples"}:
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def run(command: list[str], clone: Path) -> subprocess.CompletedProcess[str]:
    """Run one command of the page; nobody is at the keyboard, and the output is no terminal."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_and_scripts_of_a_page_run(page: Path, clone: Path) -> None:
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.info == "python":
            done = run([sys.executable, "-c", block.body], clone)
            assert done.returncode == 0, f"{page}:{block.line}\n{done.stderr}"
        for command in commands(block) if block.info == "console" else ():
            if command.text.removeprefix(".venv/bin/").startswith(tuple(EXEMPT)):
                continue
            done = run(["bash", "-c", command.text], clone)
            where = f"{page}:{command.line}: {command.text}"
            assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
            assert command.explains(done.stdout), f"{where}\nprints\n{done.stdout}\ninstead of\n{command.output}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_programs_and_options_of_commands_that_are_not_run_exist(page: Path) -> None:
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        lines = block.body.replace("\\\n", " ").splitlines() if block.info == "sh" else ()
        for words in (shlex.split(line, comments=True) for line in lines):
            program = words[0].removeprefix(".venv/bin/") if words else ""
            if program == "dsv3export":
                parse(words[1:])
            elif program == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file()
                # Scripts of a folder share modules that declare options.
                sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / words[1]).parent.glob("*.py"))
                options = [word.partition("=")[0] for word in words if word.startswith("--")]
                assert [option for option in options if f'"{option}"' not in sources] == []


def parse(words: list[str]) -> None:
    """Raises click's UsageError for a command or an option that there is not."""
    command: click.Command | None = cli
    # The settings as well: a command keeps the help option that its first context gives it.
    context = click.Context(cli, **cli.context_settings)
    while isinstance(command, click.Group):
        _, command, words = command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, parent=context)
    command.make_parser(context).parse_args(words)


def test_an_option_that_there_is_not_is_seen() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["golden", "check", "a.engine", "--frobnicate"])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    dead = []
    for target in links((ROOT / page).read_text(encoding="utf-8")):
        path, _, fragment = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        aim = (ROOT / page).parent / path if path else ROOT / page
        inside = aim.resolve().is_relative_to(ROOT)
        if not (inside and aim.exists()) or (fragment and fragment not in anchors(aim.read_text(encoding="utf-8"))):
            dead.append(target)
    assert dead == []
