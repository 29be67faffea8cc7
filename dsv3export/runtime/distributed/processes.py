"""Processes of other ranks on the same machine: whether one is still there, and its end."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_GONE = frozenset("ZX")


@dataclass(frozen=True)
class Process:
    """A process, named so that another one with its number is not taken for it.

    Attributes:
        host: The machine's name.
        machine: Identifies the machine as it was started, and the namespaces of process numbers and of the network.
        pid: Its number there.
        started: In clock ticks since the machine was started.
    """

    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def own(cls) -> Process:
        return cls(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or 0)

    @property
    def is_local(self) -> bool:
        """Whether it runs where this one does."""
        return self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended; False for one on another machine."""
        return self.is_local and _started(self.pid) != self.started

    def kill(self) -> None:
        """Ends it, also where it was stopped; nothing happens if it is gone or elsewhere."""
        if self.is_local and not self.is_gone:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)


def end_with_parent() -> None:
    """Has the kernel end this process when the one that started it ends, however that comes about."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return " ".join([boot, *(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "net"))])


def _started(pid: int) -> int | None:
    """When a process was started; None where there is none, or only its exit status is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in _GONE else int(fields[19])
