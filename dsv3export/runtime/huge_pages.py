"""Huge pages for weights in memory: with 4 KiB pages a decode step spends its time on address translation.

A backend allocates what it packs by itself, and most systems give huge pages to memory only on request
(`/sys/kernel/mm/transparent_hugepage/enabled` says ``madvise``). So it is asked for afterwards, for the memory that
appeared while a session was made: MADV_COLLAPSE (Linux 6.1) copies resident pages together at once. Where the system
does not know it or refuses, everything stays as it was.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_MAPS = Path("/proc/self/maps")
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25
_SMALL_PAGE = 4096

Range = tuple[int, int]


def anonymous_ranges() -> list[Range]:
    """(start, end) of this process's writable memory that no file backs, ascending; empty where there is no /proc."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and (not name or name[0] == "[heap]"):
            start, _, end = addresses.partition("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


def collapse_new(before: list[Range]) -> int:
    """Give huge pages to what `anonymous_ranges` finds now and did not find `before`.

    Only stretches that are in memory entirely: the others would grow.

    Returns:
        Bytes that are on huge pages now.
    """
    huge = _huge_page_size()
    if not huge:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    collapsed = 0
    for start, end in _without(anonymous_ranges(), before):
        first, last = -(-start // huge) * huge, end // huge * huge
        for begin, stop in _resident(libc, first, last, huge):
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(stop - begin), _MADV_HUGEPAGE)
            if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(stop - begin), _MADV_COLLAPSE) == 0:
                collapsed += stop - begin
    return collapsed


def _huge_page_size() -> int:
    """Bytes; 0 where the system has no transparent huge pages."""
    try:
        return int(_SIZE.read_text(encoding="ascii")) if sys.platform == "linux" else 0
    except (OSError, ValueError):
        return 0


def _without(ranges: list[Range], taken: list[Range]) -> Iterator[Range]:
    """What of `ranges` lies in none of `taken`; both ascend."""
    for start, end in ranges:
        free = start
        for taken_start, taken_end in taken:
            if taken_start >= end or taken_end <= free:
                continue
            if taken_start > free:
                yield free, taken_start
            free = taken_end
        if free < end:
            yield free, end


def _resident(libc: ctypes.CDLL, first: int, last: int, huge: int) -> Iterator[Range]:
    """The stretches of whole huge pages between `first` and `last` whose small pages are all in memory."""
    if last <= first:
        return
    pages = np.zeros((last - first) // _SMALL_PAGE, np.uint8)
    found = libc.mincore(
        ctypes.c_void_p(first), ctypes.c_size_t(last - first), pages.ctypes.data_as(ctypes.POINTER(ctypes.c_ubyte))
    )
    if found != 0:
        return
    whole = (pages.reshape(-1, huge // _SMALL_PAGE) & 1).all(axis=1)
    edges = np.flatnonzero(np.diff(whole, prepend=False, append=False))
    for begin, stop in zip(edges[0::2], edges[1::2], strict=True):
        yield first + int(begin) * huge, first + int(stop) * huge
