"""Writes the weight files of an engine: units in any order and several at once, each to its place."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Sequence
from errno import EINVAL, EOPNOTSUPP
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsv3export.dtypes import NUMPY
from dsv3export.engine.journal import Journal
from dsv3export.engine.manifest import FileRecord
from dsv3export.engine.plan import Shard
from dsv3export.engine.resources import resource_errors
from dsv3export.engine.work import Limits, Part, Stage, WorkUnit, in_parallel
from dsv3export.errors import InternalError
from dsv3export.progress import Progress

_CHUNK = 8 << 20
_SYNC_SECONDS = 10.0
_Numbered = tuple[int, WorkUnit]


class _Place(NamedTuple):
    """An open file and an offset in it."""

    path: Path
    descriptor: int
    offset: int


class WeightFiles:
    """The safetensors files of a folder, open for writing at their full size.

    Raises ResourceError, from each method too, when the machine refuses.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._open: dict[str, tuple[Path, int]] = {}
        self._places: dict[str, _Place] = {}
        try:
            for shard in shards:
                path = folder / shard.file
                self._open[shard.file] = path, _create(path, shard)
                for weight, offset in shard.offsets():
                    self._places[weight.key] = _Place(*self._open[shard.file], offset)
        except BaseException:
            self.close()
            raise

    def write(self, stages: Sequence[Stage], journal: Journal, limits: Limits, progress: Progress) -> int:
        """Makes and writes the units that the journal does not know of; returns how many bytes it knew of already.

        `progress` counts the bytes of the files.
        """
        numbers = count()
        staged = [(stage, [(next(numbers), unit) for unit in stage.units]) for stage in stages]
        everything = list(chain.from_iterable(units for _, units in staged))
        finished = self._verified(everything, journal, limits, progress)
        resumed = sum(unit.nbytes for number, unit in everything if number in finished)
        progress.start("writing weights", sum(shard.size for shard in self._shards), "bytes")
        progress.advance(resumed + sum(len(shard.header) for shard in self._shards))
        synced = time.monotonic()

        def done(task: _Numbered, checksum: int) -> None:
            nonlocal synced
            journal.add(task[0], checksum)
            progress.advance(task[1].nbytes)
            if time.monotonic() - synced > _SYNC_SECONDS:
                self._sync()
                journal.sync()
                synced = time.monotonic()

        for stage, units in staged:
            rest = [task for task in units if task[0] not in finished]
            if rest:
                stage.prepare()
                in_parallel(rest, lambda task: self._make(task[1]), limits, lambda task: task[1].memory, done)
        self._sync()
        progress.finish()
        return resumed

    def records(self, limits: Limits, progress: Progress) -> dict[str, FileRecord]:
        """Size, time and SHA-256 of each file, read back."""
        found: dict[str, FileRecord] = {}
        progress.start("hashing weights", sum(shard.size for shard in self._shards), "bytes")

        def done(shard: Shard, digest: str) -> None:
            path, descriptor = self._open[shard.file]
            with resource_errors(path):
                found[shard.file] = FileRecord(shard.size, os.fstat(descriptor).st_mtime_ns, digest)
            progress.advance(shard.size)

        in_parallel(self._shards, self._digest, limits, lambda shard: _CHUNK, done)
        progress.finish()
        return found

    def close(self) -> None:
        for _, descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _verified(
        self, units: Sequence[_Numbered], journal: Journal, limits: Limits, progress: Progress
    ) -> set[int]:  # fmt: skip
        """The numbers of the units whose bytes are what the journal says."""
        known = [task for task in units if task[0] in journal.finished]
        intact: set[int] = set()
        if not known:
            return intact
        progress.start("checking what is there", sum(unit.nbytes for _, unit in known), "bytes")

        def done(task: _Numbered, checksum: int) -> None:
            if checksum == journal.finished[task[0]]:
                intact.add(task[0])
            progress.advance(task[1].nbytes)

        in_parallel(known, lambda task: self._checksum(task[1]), limits, lambda task: _CHUNK, done)
        progress.finish()
        return intact

    def _make(self, unit: WorkUnit) -> int:
        """Make a unit and write it; returns its checksum."""
        checksum = 0
        arrays = unit.make()
        for part, array in zip(unit.parts, arrays, strict=True):
            if array.shape != part.shape or array.dtype != NUMPY[part.weight.dtype]:
                raise InternalError(
                    f"{part.weight.key} was planned as {part.weight.dtype} {part.shape}, "
                    f"made as {array.dtype} {array.shape}"
                )
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            place = self._place(part)
            with resource_errors(place.path):
                _write_all(place.descriptor, data, place.offset)
            checksum = zlib.crc32(data, checksum)
        return checksum

    def _checksum(self, unit: WorkUnit) -> int:
        checksum = 0
        for part in unit.parts:
            path, descriptor, begin = self._place(part)
            end = begin + part.nbytes
            for offset in range(begin, end, _CHUNK):
                with resource_errors(path):
                    checksum = zlib.crc32(os.pread(descriptor, min(_CHUNK, end - offset), offset), checksum)
        return checksum

    def _digest(self, shard: Shard) -> str:
        path, descriptor = self._open[shard.file]
        digest = hashlib.sha256()
        for offset in range(0, shard.size, _CHUNK):
            with resource_errors(path):
                digest.update(os.pread(descriptor, _CHUNK, offset))
        return digest.hexdigest()

    def _place(self, part: Part) -> _Place:
        place = self._places[part.weight.key]
        return place._replace(offset=place.offset + part.offset)

    def _sync(self) -> None:
        for path, descriptor in self._open.values():
            with resource_errors(path):
                os.fsync(descriptor)


def _create(path: Path, shard: Shard) -> int:
    """The file at its full size, so that the disk is not found full in the middle, with its header; or as it was."""
    with resource_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.ftruncate(descriptor, shard.size)
            try:
                os.posix_fallocate(descriptor, 0, shard.size)
            except OSError as error:
                if error.errno not in (EINVAL, EOPNOTSUPP):  # those say that the file system cannot reserve
                    raise
            _write_all(descriptor, memoryview(shard.header), 0)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:  # a write may be short
        written = os.pwrite(descriptor, data[:_CHUNK], offset)
        data, offset = data[written:], offset + written
