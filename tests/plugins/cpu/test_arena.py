"""Memory of packed weights: aligned, shared, on huge pages, freed; and pages of files that are given back."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

MIB = 1 << 20
own_mappings = pytest.mark.skipif(bool(os.environ.get("SANITIZE")), reason="allocations are heap blocks there")


@pytest.fixture
def lib(probe: Path) -> Iterator[ctypes.CDLL]:
    library = ctypes.CDLL(str(probe))
    library.probe_allocate.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.probe_allocate.restype = ctypes.c_size_t
    library.probe_allocated.restype = ctypes.c_size_t
    library.probe_pack.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.probe_release.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    yield library
    library.probe_allocate(0, 0)
    library.probe_forget()


def smaps(address: int) -> dict[str, int]:
    """The kibibytes that /proc/self/smaps counts for the mapping at `address`."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(header[1], 16) <= address < int(header[2], 16)
        elif inside and line.endswith(" kB"):
            name, value, _ = line.split()
            found[name.rstrip(":")] = int(value)
    return found


@pytest.mark.parametrize(("count", "size"), [(1, 4096), (60, 100_004), (3, 5 * MIB), (3, 40 * MIB), (5, 16 * MIB + 64)])
def test_weights_are_aligned_apart_and_freed(lib: ctypes.CDLL, count: int, size: int) -> None:
    assert lib.probe_allocate(count, size) > 2, "an address, not the number of what was wrong"
    assert lib.probe_allocated() == count * size
    assert lib.probe_allocate(0, 0) == 0
    assert lib.probe_allocated() == 0


@own_mappings
def test_small_weights_take_little_more_than_their_bytes(lib: ctypes.CDLL) -> None:
    address = lib.probe_allocate(48, 600_000)
    resident = smaps(address)["Rss"] * 1024
    assert 48 * 600_000 <= resident <= 48 * 600_000 * 1.1


@own_mappings
def test_huge_pages_where_the_system_has_them(lib: ctypes.CDLL) -> None:
    state = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not state.exists() or "[never]" in state.read_text(encoding="ascii"):
        pytest.skip("no transparent huge pages")
    mapping = smaps(lib.probe_allocate(1, 20 * MIB))
    assert mapping["AnonHugePages"] >= 16 * 1024


def test_one_copy_for_one_address_and_layout(lib: ctypes.CDLL) -> None:
    source, other = np.zeros(4), np.zeros(4)
    first = lib.probe_pack(source.ctypes.data, b"one")
    assert lib.probe_pack(source.ctypes.data, b"one") == first
    assert lib.probe_pack(source.ctypes.data, b"two") == first + 1
    assert lib.probe_pack(other.ctypes.data, b"one") == first + 2
    lib.probe_forget()
    assert lib.probe_pack(source.ctypes.data, b"one") == first + 3, "with its last user it was freed"


def test_pages_of_a_mapped_file_are_given_back(lib: ctypes.CDLL, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    np.full(4 * MIB, 7, np.uint8).tofile(file)
    mapped = np.memmap(file, np.uint8, mode="r")
    assert int(mapped.sum()) == 7 * 4 * MIB
    before = smaps(mapped.ctypes.data)["Rss"]
    lib.probe_release(mapped.ctypes.data + 100, mapped.nbytes - 100)
    assert smaps(mapped.ctypes.data)["Rss"] <= before // 8
    assert int(mapped.sum()) == 7 * 4 * MIB


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_changed_pages_stay(lib: ctypes.CDLL, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    np.zeros(MIB, np.uint8).tofile(file)
    mapped = np.memmap(file, np.uint8, mode=mode)  # type: ignore[call-overload]
    mapped[:] = 3
    plain = np.full(MIB, 5, np.uint8)
    for array in (mapped, plain):
        lib.probe_release(array.ctypes.data, array.nbytes)
    assert int(mapped.sum()) == 3 * MIB
    assert int(plain.sum()) == 5 * MIB
