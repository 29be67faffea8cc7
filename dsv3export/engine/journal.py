"""The journal of a build: which units are finished, so that a build that was killed can go on.

A text file: a line with the key of the build, then one line with the number and the checksum of each finished unit. A
line is appended when a unit's bytes have been handed to the system. Whatever became of either is found out when the
build goes on: a unit counts only if its bytes have the checksum that its line says, and a line only if it is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from dsv3export.engine.resources import resource_errors

JOURNAL_NAME = ".dsv3export-journal"
_TITLE = "dsv3export build journal 1"
_UNIT = re.compile(rb"([0-9]{1,15}) ([0-9a-f]{8})")


def journal_key(folder: Path) -> str | None:
    """The key of the journal in a folder; None if there is no journal or its first line is not whole."""
    try:
        with (folder / JOURNAL_NAME).open("rb") as file:
            first = file.readline(1024)
    except OSError:
        return None
    title, _, key = first.decode("ascii", "replace").rpartition(" ")
    return key.removesuffix("\n") if title == _TITLE and key.endswith("\n") else None


class Journal:
    """Opens, or starts, the journal of the build with a key. Raises ResourceError.

    Attributes:
        finished: Checksum of each unit that the journal knows of, by number.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / JOURNAL_NAME
        self._finished: dict[int, int] = {}
        goes_on = journal_key(folder) == key
        with resource_errors(self._path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o644)
            try:
                if goes_on:
                    self._read()
                else:
                    os.ftruncate(self._descriptor, 0)
                    self._append(f"{_TITLE} {key}\n")
            except BaseException:
                self.close()
                raise

    @property
    def finished(self) -> Mapping[int, int]:
        return MappingProxyType(self._finished)

    def add(self, unit: int, checksum: int) -> None:
        """A unit is finished."""
        with resource_errors(self._path):
            self._append(f"{unit} {checksum:08x}\n")
        self._finished[unit] = checksum

    def sync(self) -> None:
        """Makes the lines survive a power failure; the units' bytes should have been made to before."""
        with resource_errors(self._path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _append(self, line: str) -> None:
        rest = line.encode("ascii")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _read(self) -> None:
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):  # torn: what is appended now must not continue that line
            os.ftruncate(self._descriptor, end)
        for line in data[:end].split(b"\n")[1:]:
            if unit := _UNIT.fullmatch(line):
                self._finished[int(unit[1])] = int(unit[2], 16)
