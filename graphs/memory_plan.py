"""What memory a build needs, known before it starts, and how many units that allows at once."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3export.engine.work import Limits, Stage
from dsv3export.errors import ResourceError
from dsv3export.graphs.calibration import Calibration

DEFAULT_MAX_MEMORY = 3_000_000_000
# Beyond what is resident when the build has been planned: file tables, the serialised graph, the manifest.
_RESERVE = 64 << 20
_RESIDENT_UNKNOWN = 600 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """How a build keeps to its memory.

    Attributes:
        limits: Of the units that are made at once.
        expected: Resident bytes of the process, at most.
    """

    limits: Limits
    expected: int


def plan_memory(
    stages: Sequence[Stage], threads: int, max_memory: int | None, calibration: Calibration | None
) -> MemoryPlan:
    """The limits that keep the process within `max_memory` bytes.

    Args:
        max_memory: None = 3 GB, or the least possible where that is more.

    Raises:
        ResourceError: The least possible is more than `max_memory`; says what it is.
    """
    held = resident_bytes() + _RESERVE
    passing = held
    if calibration is not None:
        held, passing = held + calibration.held_bytes, passing + calibration.passing_bytes
    sizes = [unit.memory for stage in stages for unit in stage.units]
    least = max(passing, held + max(sizes, default=0))
    if max_memory is not None and max_memory < least:
        raise ResourceError(
            "max_memory",
            expected=f"at least {_gigabytes(least)} GB, for the largest matrix or expert of this model and recipe",
            got=f"{_gigabytes(max_memory)} GB",
            fix=f"Give --max-memory {_gigabytes(least)}GB or more.",
        )
    limits = Limits(threads, max(max_memory or DEFAULT_MAX_MEMORY, least) - held)
    at_once = min(limits.memory, sum(heapq.nlargest(threads, sizes)))
    return MemoryPlan(limits, max(passing, held + at_once))


def resident_bytes() -> int:
    """Memory of this process that is resident now; a guess where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _RESIDENT_UNKNOWN
    (size,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(size) << 10


def _gigabytes(count: int) -> str:
    """Rounded up to two digits after the point, so that the number may be given back as an option."""
    return f"{-(-count // 10_000_000) / 100:.2f}"
