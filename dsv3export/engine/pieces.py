"""Ranges of files, put together to one array."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from dsv3export.engine.manifest import Piece
from dsv3export.errors import EngineError


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same bytes in the same order as few pieces as possible: those that lie one behind the other become one."""
    runs = [pieces[0]]
    for piece in pieces[1:]:
        last = runs[-1]
        if (piece.file, piece.offset) == (last.file, last.end):
            runs[-1] = Piece(last.file, last.offset, last.nbytes + piece.nbytes)
        else:
            runs.append(piece)
    return runs


def read_pieces(folder: Path, pieces: Iterable[Piece], target: memoryview) -> None:
    """Reads pieces, one after the other, into `target`, bytes of their length in all.

    Not by way of a mapping, whose pages would count as memory of this process beside the target.

    Raises:
        EngineError: A file cannot be read, or ends within a piece.
    """
    start = 0
    with ExitStack() as stack:
        files: dict[str, FileIO] = {}
        for piece in pieces:
            path = folder / piece.file
            try:
                if piece.file not in files:
                    files[piece.file] = stack.enter_context(FileIO(path))
                read_into(files[piece.file], piece.offset, target[start : start + piece.nbytes])
            except OSError as error:
                raise EngineError(str(path), expected="a readable file", got=error.strerror or str(error)) from error
            start += piece.nbytes


def read_into(file: FileIO, offset: int, target: memoryview) -> None:
    """Fills `target` with a file's bytes from `offset` on. Raises EngineError where the file ends before."""
    end = offset + len(target)
    file.seek(offset)
    while target:
        count = file.readinto(target)
        if not count:
            raise EngineError(str(file.name), expected=f"{end} bytes", got=f"{file.tell()}: it was cut just now")
        target = target[count:]
