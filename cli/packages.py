"""Which Python packages are here, and whether they import. Nothing is imported into this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

PROBE_SECONDS = 120

PROVIDERS_PROGRAM = """
import json, onnxruntime
from dsv3export.runtime.onnxruntime_device import problems
print(json.dumps([onnxruntime.get_available_providers(), problems()]))
"""


@dataclass(frozen=True)
class PackageEntry:
    """One package that dsv3export can use: its module, the distributions that may bring it, and what it is for."""

    module: str
    distributions: tuple[str, ...]
    purpose: str


PACKAGES = (
    PackageEntry("numpy", ("numpy",), "everything"),
    PackageEntry("ml_dtypes", ("ml_dtypes",), "everything"),
    PackageEntry("tokenizers", ("tokenizers",), "run"),
    PackageEntry("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "run on onnxruntime"),
    PackageEntry("torch", ("torch",), "build, graph"),
    PackageEntry("onnx", ("onnx",), "build, graph"),
    PackageEntry("onnx_ir", ("onnx-ir",), "build, graph"),
    PackageEntry("tensorrt_rtx_bindings", ("tensorrt-rtx-cu13-bindings",), "backend tensorrt-rtx"),
    PackageEntry("tensorrt", ("tensorrt",), "backend tensorrt"),
    PackageEntry("cuda.bindings", ("cuda-bindings",), "run on tensorrt-rtx, tensorrt"),
    PackageEntry("triton", ("triton",), "GPU kernels"),
    PackageEntry("transformers", ("transformers",), "tests only"),
)


@dataclass(frozen=True)
class PackageState:
    """What was found of one package. `problem` is why it does not import, empty where it does or was not tried."""

    entry: PackageEntry
    versions: tuple[str, ...]
    problem: str = ""

    @property
    def usable(self) -> bool:
        return bool(self.versions) and not self.problem


@dataclass(frozen=True)
class ProviderStates:
    """ONNX Runtime's execution providers.

    Attributes:
        names: Those that the installed build has.
        problems: For each that engines can be built for, why it cannot be used here; empty where it can.
        failure: Why nothing of this could be found out; empty where it could.
    """

    names: tuple[str, ...]
    problems: Mapping[str, str]
    failure: str = ""


def read_packages(probe: bool) -> dict[str, PackageState]:
    """Module name -> state, by the installed metadata; with `probe` each one is imported in a process of its own."""
    states = {}
    for entry in PACKAGES:
        versions = tuple(found for name in entry.distributions if (found := _version(name)))
        problem = _import_problem(entry.module) if probe and versions else ""
        if len(versions) > 1:
            problem = f"{' and '.join(entry.distributions)} are both installed and break each other"
        states[entry.module] = PackageState(entry, versions, problem)
    return states


def read_providers() -> ProviderStates:
    """Looks into the installed ONNX Runtime and tries each provider."""
    done = _python(PROVIDERS_PROGRAM)
    if isinstance(done, str):
        return ProviderStates((), {}, done)
    names, problems = json.loads(done.stdout)
    return ProviderStates(tuple(names), problems)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _import_problem(module: str) -> str:
    done = _python(f"import {module}")
    return done if isinstance(done, str) else ""


def _python(program: str) -> subprocess.CompletedProcess[str] | str:
    """Runs `program` in a fresh interpreter, which a broken native library may take down; a str says why it failed."""
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_SECONDS} s"
    if done.returncode == 0:
        return done
    if done.returncode < 0:
        return f"the import ended by signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
