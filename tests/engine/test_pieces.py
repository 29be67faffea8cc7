"""Arrays from ranges of files: any cuts, in any order, give the same bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.engine.manifest import Piece
from dsv3export.engine.pieces import joined, read_pieces
from dsv3export.errors import EngineError

SIZE = 300
RANGES = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, SIZE), st.integers(0, SIZE)).map(
    lambda drawn: Piece(drawn[0], min(drawn[1:]), abs(drawn[1] - drawn[2]))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    for name, start in (("a", 0), ("b", 7)):
        (folder / name).write_bytes(bytes((start + i * i) % 256 for i in range(SIZE)))
    return folder


def content(folder: Path, pieces: list[Piece]) -> bytes:
    return b"".join((folder / piece.file).read_bytes()[piece.offset : piece.end] for piece in pieces)


@given(st.lists(RANGES, min_size=1, max_size=8))
def test_pieces_are_read_in_their_order(folder: Path, pieces: list[Piece]) -> None:
    target = bytearray(sum(piece.nbytes for piece in pieces))
    read_pieces(folder, pieces, memoryview(target))
    assert bytes(target) == content(folder, pieces)


@given(st.lists(RANGES, min_size=1, max_size=8))
def test_joined_pieces_are_the_same_bytes(folder: Path, pieces: list[Piece]) -> None:
    runs = joined(pieces)
    assert content(folder, runs) == content(folder, pieces)
    touching = [a for a, b in pairwise(runs) if (a.file, a.end) == (b.file, b.offset)]
    assert len(runs) <= len(pieces) and not touching


def test_a_cut_range_becomes_one_again() -> None:
    pieces = [Piece("a", 10, 5), Piece("a", 15, 1), Piece("a", 16, 84), Piece("b", 100, 1)]
    assert joined(pieces) == [Piece("a", 10, 90), Piece("b", 100, 1)]


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (Piece("a", SIZE - 1, 2), r"/a: expected 301 bytes, got 300: it was cut just now"),
        (Piece("missing", 0, 1), r"/missing: expected a readable file, got No such file"),
        (Piece("a/b", 0, 1), r"/a/b: expected a readable file, got Not a directory"),
    ],
)
def test_what_cannot_be_read_is_named(folder: Path, piece: Piece, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        read_pieces(folder, [piece], memoryview(bytearray(piece.nbytes)))


@given(
    offset=st.integers(0, 40), run=st.integers(1, 20), gap=st.integers(0, 20), count=st.integers(1, 12),
    chunk=st.integers(1, 100),
)  # fmt: skip
def test_columns_are_read_as_ranges(
    folder: Path, offset: int, run: int, gap: int, count: int, chunk: int
) -> None:  # fmt: skip
    stride = run + gap
    piece = Piece("a", offset, run * count, run, stride)
    if piece.end > SIZE:
        return
    target = bytearray(run * count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsv3export.engine.pieces._CHUNK", chunk)
        read_pieces(folder, [piece], memoryview(target))
    whole = (folder / "a").read_bytes()
    starts = range(offset, offset + stride * count, stride)
    assert bytes(target) == b"".join(whole[start : start + run] for start in starts)
    assert piece.end == starts[-1] + run
    assert joined([piece, Piece("a", piece.end, 1)]) == [piece, Piece("a", piece.end, 1)]
