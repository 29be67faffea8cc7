"""Facts about the machine and the programs that figures depend on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "dsv3export",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "numpy",
    "llama-cpp-python",
    "gguf",
)


def machine_facts() -> dict[str, Any]:
    """JSON-able; the load averages are those of the last 1, 5 and 15 minutes."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "load_average": list(os.getloadavg()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
