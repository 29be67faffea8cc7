"""Files that cannot be written are refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from dsv3export.cli.outputs import check_outputs, check_plot
from dsv3export.errors import BackendError, ResourceError
from dsv3export.report import matplotlib_figure
from tests.support.command_line import run_here


def test_a_file_in_a_folder_that_is_there(tmp_path: Path) -> None:
    check_outputs(None, tmp_path / "new.json")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="none"):
        check_outputs(tmp_path / "none" / "x.json")
    with pytest.raises(ResourceError, match="file"):
        check_outputs(tmp_path / "file" / "x.json")
    with pytest.raises(ResourceError, match="got a folder"):
        check_outputs(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("diff", "CKPT", "CKPT", "--prompts", "P", "--json", "NONE/x"),
        ("diff", "CKPT", "CKPT", "--prompts", "P", "--html", "NONE/x"),
        ("diff", "CKPT", "CKPT", "--prompts", "P", "--plot", "NONE/x.png"),
        ("golden", "record", "CKPT", "--prompts", "P", "-o", "NONE/x"),
        ("golden", "check", "CKPT", "P", "--junit", "NONE/x"),
        ("sensitivity", "CKPT", "--text", "P", "--max-kl", "1", "-o", "NONE/x"),
    ],
)
def test_it_is_said_at_once(arguments: tuple[str, ...], tiny_bf16: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("[0, 1]\n", encoding="utf-8")
    known = {"CKPT": str(tiny_bf16), "P": str(prompts)}
    spelled = [known.get(each, each.replace("NONE", str(tmp_path / "none"))) for each in arguments]
    computes = AssertionError("computed something")
    with mock.patch("dsv3export.checkpoint.Checkpoint.open", side_effect=computes):
        outcome = run_here(*spelled)
    assert outcome.code == 2
    assert len(outcome.err_lines) == 1
    assert str(tmp_path / "none") in outcome.err


def test_a_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib_figure, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"dsv3export\[plot\]"):
        check_plot(tmp_path / "x.png")
