"""`dsv3export report`: a comparison's JSON as a page, a picture and a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.compare.diff_file import diff_to_bytes
from dsv3export.report.diff_html import diff_page
from tests.report.diffs import diff, hostile
from tests.support.command_line import assert_refused, run_here


@pytest.fixture
def diff_file(tmp_path: Path) -> Path:
    path = tmp_path / "diff.json"
    path.write_bytes(diff_to_bytes(diff()))
    return path


def test_a_page_a_picture_and_a_table(diff_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "diff.html", tmp_path / "diff.SVG"
    outcome = run_here("report", diff_file, "--html", page, "--plot", picture)
    assert (outcome.code, outcome.err) == (0, "")
    assert page.read_bytes() == diff_page(diff())
    assert b"<svg" in picture.read_bytes()
    assert "layers.3" in outcome.out
    assert "none beyond 0.1" in outcome.out


def test_quiet_says_nothing_and_all_says_all(diff_file: Path) -> None:
    assert run_here("report", diff_file, "--quiet").out == ""
    assert "layers.2.mlp.experts" in run_here("report", diff_file, "--all").out
    assert "layers.2.mlp.experts" not in run_here("report", diff_file).out


def test_a_strangers_texts_reach_the_terminal_written_out(diff_file: Path) -> None:
    diff_file.write_bytes(diff_to_bytes(hostile()))
    outcome = run_here("report", diff_file, "--all")
    assert outcome.code == 0
    assert not {"\x00", "\x1b", "\u202e"} & set(outcome.out)
    assert r"\u202e" in outcome.out


def test_what_is_refused(diff_file: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ((tmp_path / "no.json",), ("no.json", "nothing there")),
        ((tmp_path,), ("a directory",)),
        ((diff_file, "--plot", tmp_path / "diff.gif"), ("--plot", ".png or .svg", "diff.gif")),
        ((diff_file, "--html", tmp_path / "no" / "diff.html"), ("diff.html",)),
    ):
        assert_refused(run_here("report", *arguments, "--quiet"), says, tmp_path)
    diff_file.write_text('{"kind": "dsv3export diff", "version": 1}', encoding="utf-8")
    assert_refused(run_here("report", diff_file), ("diff.json", "the key 'expected'"), tmp_path)
    diff_file.write_text("[1]", encoding="utf-8")
    assert_refused(run_here("report", diff_file), ("JSON object",), tmp_path)
