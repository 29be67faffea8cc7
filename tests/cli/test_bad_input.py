"""Bad input through the real command line: exit code 2, one line that names the thing, and nothing left behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.bad_checkpoints import BAD_CHECKPOINTS, BadCheckpoint
from tests.cli.bad_configs import BAD_CONFIGS
from tests.cli.bad_engines import BAD_ENGINES, BadEngine
from tests.cli.bad_requests import BAD_REQUESTS, BadRequest
from tests.support.altered import edit_json, hard_copy, linked_copy
from tests.support.command_line import assert_refused, run_here


@pytest.mark.parametrize("case", BAD_CHECKPOINTS, ids=lambda case: case.name)
def test_bad_checkpoint(case: BadCheckpoint, tiny_fp8: Path, tmp_path: Path) -> None:
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    case.spoil(checkpoint)
    assert_refused(run_here("build", checkpoint, "-o", tmp_path / "engine"), case.says, tmp_path)


@pytest.mark.parametrize(("key", "value", "shown"), BAD_CONFIGS, ids=lambda part: str(part)[:40])
def test_bad_config(key: str, value: object, shown: str, tiny_fp8: Path, tmp_path: Path) -> None:
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda config: config.update({key: value}))
    says = ("config.json", key, shown)
    assert_refused(run_here("build", checkpoint, "-o", tmp_path / "engine"), says, tmp_path)
    assert_refused(run_here("inspect", checkpoint / "config.json"), says, tmp_path)


@pytest.mark.parametrize("case", BAD_ENGINES, ids=lambda case: case.name)
def test_bad_engine(case: BadEngine, tiny_engine: Path, tmp_path: Path) -> None:
    engine = hard_copy(tiny_engine, tmp_path / "copy")
    case.spoil(engine)
    assert_refused(run_here("run", engine, "--prompt", "x"), case.says, tmp_path)


@pytest.mark.parametrize("case", BAD_REQUESTS, ids=lambda case: " ".join(case.arguments)[:60])
def test_bad_request(case: BadRequest, tiny_fp8: Path, tiny_engine: Path, tmp_path: Path) -> None:
    places = {"CHECKPOINT": tmp_path / "CHECKPOINT", "ENGINE": tiny_engine, "TARGET": tmp_path / "TARGET"}
    linked_copy(tiny_fp8, places["CHECKPOINT"])
    (tmp_path / "FILE").write_text("text")
    places["FILE"] = tmp_path / "FILE"
    before = sorted(tmp_path.rglob("*"))
    arguments = [_placed(argument, places) for argument in case.arguments]
    assert_refused(run_here(*arguments, stdin=case.stdin), case.says, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def _placed(argument: str, places: Mapping[str, Path]) -> str:
    """CHECKPOINT/config.json -> the path of that file."""
    word, slash, rest = argument.partition("/")
    return f"{places[word]}{slash}{rest}" if word in places else argument
