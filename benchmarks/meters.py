"""Clocks and memory of the process that calls them, by what Linux counts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_MIN_WALL_FOR_OTHERS = 0.5


@dataclass
class Span:
    """How long something took.

    Attributes:
        wall: Seconds on the clock.
        cpu: Seconds of CPU time, all threads of this process together.
        others: Cores that everything else on the machine kept busy meanwhile, on average; they slow a span down even
            on other cores, by the memory that they read. 0.0 for spans too short for the system's ticks of 10 ms.
    """

    wall: float = 0.0
    cpu: float = 0.0
    others: float = 0.0


@contextmanager
def timed() -> Iterator[Span]:
    """Yields a span that is filled in at the end of the block."""
    span = Span()
    busy, cpu, wall = _busy_seconds(), time.process_time(), time.perf_counter()
    yield span
    span.wall = time.perf_counter() - wall
    span.cpu = time.process_time() - cpu
    if span.wall > _MIN_WALL_FOR_OTHERS:
        span.others = max(0.0, _busy_seconds() - busy - span.cpu) / span.wall


def wait_until_quiet(max_others: float, patience: float) -> None:
    """Return when others keep at most `max_others` cores busy, or after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with timed() as span:
            time.sleep(1.0)
        if span.others <= max_others:
            return


def since_process_start() -> Span:
    """From the start of this process until now, its imports included; what others did is not known."""
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    # field 22 of the line; the name in field 2 may hold blanks, and ends with the last parenthesis
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return Span(wall=uptime - int(fields[19]) / _TICKS_PER_SECOND, cpu=time.process_time())


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had, mapped file pages included.

    Not ru_maxrss, which a process inherits from the one that started it.
    """
    return _status_bytes("VmHWM")


def memory_bytes() -> dict[str, int]:
    """Resident memory now: "anonymous", which the system cannot take back without swapping, and "file", which it can.

    Mapped weights are of the second kind, and resident as far as they were read.
    """
    return {"anonymous_rss_bytes": _status_bytes("RssAnon"), "file_rss_bytes": _status_bytes("RssFile")}


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _busy_seconds() -> float:
    """CPU time of the whole machine so far, time that a hypervisor took away (steal) included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_SECOND
