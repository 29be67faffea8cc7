"""Ranges of files, put together to one array."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsv3export.dtypes import NUMPY
from dsv3export.engine.manifest import Piece, WeightEntry
from dsv3export.errors import EngineError

_CHUNK = 4 << 20


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same bytes in the same order as few pieces as possible: those that lie one behind the other become one."""
    runs = [pieces[0]]
    for piece in pieces[1:]:
        last = runs[-1]
        if not piece.run and not last.run and (piece.file, piece.offset) == (last.file, last.end):
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
                place = target[start : start + piece.nbytes]
                if piece.run:
                    _read_columns(files[piece.file], piece, place)
                else:
                    read_into(files[piece.file], piece.offset, place)
            except OSError as error:
                raise EngineError(str(path), expected="a readable file", got=error.strerror or str(error)) from error
            start += piece.nbytes


def read_array(folder: Path, entry: WeightEntry) -> NDArray[np.generic]:
    """A weight in an array of its own. Raises EngineError as `read_pieces`."""
    array: NDArray[np.generic] = np.empty(entry.shape, NUMPY[entry.dtype])
    read_pieces(folder, joined(entry.pieces), array.reshape(-1).view(np.uint8).data)
    return array


def _read_columns(file: FileIO, piece: Piece, target: memoryview) -> None:
    """Ranges at even distances: read some megabytes at a time with what lies between them."""
    count = piece.nbytes // piece.run
    rows = np.frombuffer(target, np.uint8).reshape(count, piece.run)
    step = max(1, _CHUNK // piece.stride)
    buffer = np.empty(min(step, count) * piece.stride, np.uint8)
    for begin in range(0, count, step):
        some = min(step, count - begin)
        # behind the last range there may be no whole stride
        length = (some - 1) * piece.stride + piece.run
        read_into(file, piece.offset + begin * piece.stride, buffer[:length].data)
        rows[begin : begin + some] = buffer[: some * piece.stride].reshape(some, piece.stride)[:, : piece.run]


def read_into(file: FileIO, offset: int, target: memoryview) -> None:
    """Fills `target` with a file's bytes from `offset` on. Raises EngineError where the file ends before."""
    end = offset + len(target)
    file.seek(offset)
    while target:
        count = file.readinto(target)
        if not count:
            raise EngineError(str(file.name), expected=f"{end} bytes", got=f"{file.tell()}: it was cut just now")
        target = target[count:]
