"""Sizes, counts and tables for people; progress bars."""

from __future__ import annotations

import io

import pytest

from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import bytes_text, count_text, counted, print_json, print_table
from dsv3export.progress import NoProgress, Unit


class Terminal(io.StringIO):
    """Text that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (689 * 10**9, "641.7 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_bytes_text(count: int | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (12345, "12,345"), (7_486_768, "7.49 M"), (671_026_404_352, "671.03 B")]
)
def test_count_text(count: int, text: str) -> None:
    assert count_text(count) == text


def test_counted() -> None:
    assert [counted(count, "tensor") for count in (0, 1, 1234)] == ["0 tensors", "1 tensor", "1,234 tensors"]


def test_json_is_one_line_and_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "é\n｜"})
    assert capsys.readouterr().out == '{"text": "é\\n｜"}\n'
    with pytest.raises(ValueError, match="JSON"):
        print_json({"rate": float("nan")})


def test_table_keeps_wide_cells_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "x" * 120
    print_table("title", ("a", "b"), [(wide, "[bold]"), (1, None)], right=("b",))
    out = capsys.readouterr().out
    assert wide in out
    assert "[bold]" in out
    assert "None" in out


@pytest.mark.parametrize("unit", ["bytes", "tensors"])
def test_bar_on_a_terminal(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress_on_stderr(quiet=False) as progress:
        progress.start("packing", 4096, unit)
        progress.advance(1024)
        progress.finish()
        progress.start("writing", 10, "tensors")
    shown = terminal.getvalue()
    assert "packing" in shown
    assert ("4.0/4.0 KiB" if unit == "bytes" else "4096/4096") in shown
    assert "writing" in shown
    # The cursor, hidden while a bar is drawn, is back although the second bar never finished.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_no_bar_when_quiet_or_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress_on_stderr(quiet=True) as progress:
        assert isinstance(progress, NoProgress)
    assert terminal.getvalue() == ""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with progress_on_stderr(quiet=False) as progress:
        assert isinstance(progress, NoProgress)
