"""What this machine is: processor, memory, GPUs. Reads /proc where there is one; what cannot be found out is None."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# CPU flags that decide which kernels a backend can use, as the kernel spells them (x86, then Arm).
USEFUL_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)

GPU_QUERY = ("name", "memory.total", "compute_cap", "driver_version")


@dataclass(frozen=True)
class Cpu:
    """The processor. `usable_cores` counts the logical processors that this process may run on."""

    model: str
    features: tuple[str, ...]
    logical_cores: int
    usable_cores: int


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory; `limit` is that of the control group (containers), None where there is none."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as nvidia-smi describes it."""

    name: str
    memory: str
    compute_capability: str
    driver: str


def read_cpu(proc: Path = Path("/proc")) -> Cpu:
    """Reads `proc`/cpuinfo: the first value of each key."""
    entries = _colon_table(proc / "cpuinfo")
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    logical = os.cpu_count() or 1
    return Cpu(
        model=entries.get("model name") or platform.processor() or platform.machine(),
        features=tuple(feature for feature in USEFUL_FEATURES if feature in flags),
        logical_cores=logical,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical,
    )


def read_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Reads `proc`/meminfo (kB) and the memory limit of the control group, version 2 or 1."""
    entries = _colon_table(proc / "meminfo")
    limits = (_number(cgroup / "memory.max"), _number(cgroup / "memory" / "memory.limit_in_bytes"))
    total = _kilobytes(entries, "MemTotal")
    # Version 1 says "no limit" by a number beyond any memory.
    limit = next((value for value in limits if value is not None and (total is None or value < total)), None)
    return Memory(total, _kilobytes(entries, "MemAvailable"), limit)


def read_gpus(program: str = "nvidia-smi") -> tuple[Gpu, ...]:
    """The NVIDIA GPUs, asked of nvidia-smi; none where it is missing or fails."""
    command = [program, f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = ([cell.strip() for cell in line.split(",")] for line in answer.splitlines())
    return tuple(Gpu(*row) for row in rows if len(row) == len(GPU_QUERY))


def _colon_table(path: Path) -> Mapping[str, str]:
    """`key : value` lines; the first value of a key counts. Empty where the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    table: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        table.setdefault(key.strip(), value.strip())
    return table


def _kilobytes(entries: Mapping[str, str], key: str) -> int | None:
    number = entries.get(key, "").removesuffix("kB").strip()
    return int(number) * 1024 if number.isdigit() else None


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None
