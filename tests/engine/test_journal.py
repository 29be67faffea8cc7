"""The journal of finished units, whole and torn."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.engine.journal import JOURNAL_NAME, Journal, journal_key
from dsv3export.errors import ResourceError

UNITS = {3: 0xDEADBEEF, 0: 0, 12: 7}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a journal of `UNITS`."""
    journal = Journal(tmp_path, "key")
    for unit, checksum in UNITS.items():
        journal.add(unit, checksum)
    journal.sync()
    journal.close()
    return tmp_path


def reopened(folder: Path, key: str = "key") -> dict[int, int]:
    journal = Journal(folder, key)
    journal.close()
    return dict(journal.finished)


def test_what_was_added_is_there_again(written: Path) -> None:
    assert journal_key(written) == "key"
    assert reopened(written) == UNITS


def test_another_key_starts_anew(written: Path) -> None:
    assert reopened(written, "other") == {}
    assert journal_key(written) == "other"


def test_the_latest_line_of_a_unit_counts(written: Path) -> None:
    journal = Journal(written, "key")
    journal.add(3, 5)
    journal.close()
    assert reopened(written) == {**UNITS, 3: 5}


def test_cut_anywhere_it_holds_a_part_and_can_be_continued(written: Path) -> None:
    data = (written / JOURNAL_NAME).read_bytes()
    first = data.index(b"\n") + 1
    for end in range(len(data) + 1):
        (written / JOURNAL_NAME).write_bytes(data[:end])
        known = data[first:end].count(b"\n")
        assert journal_key(written) == ("key" if end >= first else None)
        journal = Journal(written, "key")
        assert list(journal.finished) == list(UNITS)[:known]
        journal.add(99, 1)
        journal.close()
        assert reopened(written)[99] == 1
        assert len(reopened(written)) == known + 1


@pytest.mark.parametrize("line", [b"nonsense", b"", b"1 xyz", b"-1 00000000", b"\xff\xfe 00000000", b"1 00000000 0"])
def test_a_bad_line_is_no_unit(written: Path, line: bytes) -> None:
    with (written / JOURNAL_NAME).open("ab") as file:
        file.write(line + b"\n5 0000000a\n")
    assert reopened(written) == {**UNITS, 5: 10}


@pytest.mark.parametrize("content", [b"", b"\xff" * 5000, b"dsv3export build journal 2 key\n", b"key\n"])
def test_what_is_no_journal_has_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(content)
    assert journal_key(tmp_path) is None
    assert reopened(tmp_path) == {}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / JOURNAL_NAME).symlink_to("mine")
    with pytest.raises(ResourceError, match=f"cannot write .*{JOURNAL_NAME}"):
        Journal(tmp_path, "key")
    assert (tmp_path / "mine").read_text() == "mine"
