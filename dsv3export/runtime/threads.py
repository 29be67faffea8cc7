"""How many threads are worth starting."""

from __future__ import annotations

import math
import os
from pathlib import Path

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_QUOTA = "/sys/fs/cgroup/cpu.max"


def default_threads() -> int:
    """Physical cores that this process may use: its affinity without hyper-threads, capped by the cgroup's quota."""
    usable = os.sched_getaffinity(0)
    cores = {_read(_TOPOLOGY.format(cpu)) or str(cpu) for cpu in usable}
    quota = _read(_QUOTA).split()
    if len(quota) == 2 and quota[0] != "max":
        return max(1, min(len(cores), math.ceil(int(quota[0]) / int(quota[1]))))
    return max(1, len(cores))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
