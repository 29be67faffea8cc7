"""The probe: a second library of custom ops, of the kernels' base and tests' own ops."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BASE = ("arena", "isa", "op", "parallel", "scratch", "tensor")


@pytest.fixture(scope="session")
def probe(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """probe/probe.cpp with the base of plugins/cpu, compiled."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    out = tmp_path_factory.mktemp("probe") / "probe.so"
    sources = [root / "plugins" / "cpu" / f"{name}.cpp" for name in BASE]
    flags = ["-std=c++17", "-Og", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-I", root / "plugins" / "cpu"]
    if os.environ.get("SANITIZE"):
        flags += ["-DDSV3_SANITIZED", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"]
    subprocess.run([compiler, *flags, Path(__file__).parent / "probe" / "probe.cpp", *sources, "-o", out], check=True)
    return out
