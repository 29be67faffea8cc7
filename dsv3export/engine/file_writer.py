"""Writes one file of an engine: digest on the way, fsync at the end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from dsv3export.engine.manifest import FileRecord
from dsv3export.engine.resources import resource_errors


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileRecord:
    """Creates `path` (its folder too) from `chunks`; it must not exist. Raises ResourceError.

    An exception that `chunks` raises is passed on as it is, even an OSError: it speaks of what is read.
    """
    with resource_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=0)
    with file:
        digest = hashlib.sha256()
        for chunk in chunks:
            with resource_errors(path):
                _write_all(file.fileno(), chunk)
            digest.update(chunk)
        with resource_errors(path):
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
    return FileRecord(status.st_size, status.st_mtime_ns, digest.hexdigest())


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    rest = memoryview(chunk)
    while rest:  # a write may be short, e.g. just before the disk is full
        rest = rest[os.write(descriptor, rest) :]
