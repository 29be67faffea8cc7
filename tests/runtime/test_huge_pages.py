from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.runtime import huge_pages
from dsv3export.runtime.huge_pages import Range, anonymous_ranges, collapse_new

_MIB = 1 << 20

BORDERS = st.lists(st.integers(0, 40), unique=True, max_size=10).map(sorted)


def ranges_of(borders: list[int]) -> list[Range]:
    return list(zip(borders[0::2], borders[1::2], strict=False))


def members(ranges: list[Range]) -> set[int]:
    return {number for start, end in ranges for number in range(start, end)}


@given(BORDERS.map(ranges_of), BORDERS.map(ranges_of))
def test_what_was_there_before_is_taken_out(ranges: list[Range], taken: list[Range]) -> None:
    left = list(huge_pages._without(ranges, taken))
    assert members(left) == members(ranges) - members(taken)
    assert all(start < end for start, end in left)


def test_memory_of_this_process_is_found() -> None:
    array = np.ones(8 * _MIB, np.uint8)
    middle = array.ctypes.data + array.nbytes // 2
    assert any(start <= middle < end for start, end in anonymous_ranges())


def test_resident_memory_moves_to_huge_pages_and_keeps_its_contents() -> None:
    before = anonymous_ranges()
    with mmap.mmap(-1, 16 * _MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        numbers = np.frombuffer(memory, np.uint64)
        numbers[:] = np.arange(len(numbers))
        collapsed = collapse_new(before)
        assert (numbers == np.arange(len(numbers))).all()
        if not collapsed:
            pytest.skip("this system gives no huge pages")
        assert collapsed >= 8 * _MIB
        del numbers


def test_memory_that_was_never_touched_does_not_grow() -> None:
    before = anonymous_ranges()
    with mmap.mmap(-1, 64 * _MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[0] = 1
        resident = _resident_bytes()
        collapse_new(before)
        assert _resident_bytes() - resident < 16 * _MIB


def test_nothing_happens_where_the_system_has_no_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_SIZE", tmp_path / "none")
    assert collapse_new([]) == 0
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "none")
    assert anonymous_ranges() == []


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE
