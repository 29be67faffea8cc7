"""`dsv3export doctor`: what it reads of the machine, and what it concludes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsv3export.cli import packages
from dsv3export.cli.capabilities import BACKENDS, PRECISIONS, capabilities
from dsv3export.cli.machine import Gpu, Memory, read_cpu, read_gpus, read_memory
from dsv3export.cli.packages import (
    PACKAGES,
    PackageEntry,
    PackageState,
    ProviderStates,
    read_packages,
    read_providers,
)
from dsv3export.runtime import cpu_kernels
from tests.support.command_line import run_here, run_process

X86 = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse2 avx2 fma avx512f avx512_vnni

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd40\n"


def states(*broken: str, missing: tuple[str, ...] = ()) -> dict[str, PackageState]:
    """All packages installed, but for `missing`; those in `broken` do not import."""
    return {
        entry.module: PackageState(
            entry, () if entry.module in missing else ("1.0",), "broken" if entry.module in broken else ""
        )
        for entry in PACKAGES
    }


def test_json_of_this_machine() -> None:
    outcome = run_here("doctor", "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    facts = json.loads(outcome.out)
    assert facts["python"]["executable"] == sys.executable
    assert "CPUExecutionProvider" in facts["onnxruntime_providers"]
    assert [row["provider"] for row in facts["providers"]] == ["cpu", "cuda", "migraphx", "cann"]
    assert facts["providers"][0] == {"provider": "cpu", "usable": True, "why_not": ""}
    assert facts["packages"]["torch"]["versions"] != []
    assert facts["cpu"]["usable_cores"] >= 1
    assert facts["memory"]["total"] > 1 << 28
    works = {(row["backend"], row["precision"]): row for row in facts["works"]}
    assert len(works) == len(facts["works"]) == len(BACKENDS) * len(PRECISIONS)
    assert works["onnxruntime", "fp32"] == {
        "backend": "onnxruntime", "precision": "fp32", "build": True, "run": True, "why_not": "",
    }  # fmt: skip
    assert works["tensorrt", "fp8"]["why_not"] != ""


def test_for_people() -> None:
    outcome = run_here("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    for word in ("This machine", "Packages", "What works", "CPUExecutionProvider", "tensorrt-rtx", sys.executable):
        assert word in outcome.out.replace("\n", "")


@pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")
def test_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3EXPORT_CPU_ISA", "generic")
    found = json.loads(run_here("doctor", "--json").out)["cpu_kernels"]
    assert (found["isa"], found["problem"]) == ("generic", "")
    assert "Linear" in found["ops"]
    assert f"{found['isa']}" in run_here("doctor").out


def test_no_native_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_kernels, "_FILE", tmp_path / "none.so")
    problem = "not compiled. Install a C++ compiler (g++ or clang++), then install dsv3export again from source."
    assert json.loads(run_here("doctor", "--json").out)["cpu_kernels"] == {"problem": problem}
    assert "not compiled. Install a C++ compiler" in run_here("doctor").out


def test_native_kernels_of_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu_kernels.library() is None:
        pytest.skip("the native CPU kernels were not compiled")
    monkeypatch.setenv("DSV3EXPORT_CPU_ISA", "sse9")
    (problem,) = json.loads(run_here("doctor", "--json").out)["cpu_kernels"].values()
    assert problem == "DSV3EXPORT_CPU_ISA: expected generic, avx2, avx512 or amx, got sse9"


def test_probe_imports_packages_apart() -> None:
    """A package that ends the process, one that raises, one that is fine."""
    assert packages._import_problem("json") == ""
    assert "No module named 'nowhere'" in packages._import_problem("nowhere")
    assert packages._import_problem("os; os.kill(os.getpid(), 9)") == "the import ended by signal 9"
    assert packages._import_problem("os; os._exit(3)") == "exit code 3"


def test_probe_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PROBE_SECONDS", 0.2)
    assert packages._import_problem("time; time.sleep(60)") == "no answer in 0.2 s"


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (
        PackageEntry("click", ("click",), "all"),
        PackageEntry("nowhere", ("no-such-distribution",), "none"),
        PackageEntry("both", ("click", "rich"), "two distributions that bring one module"),
    )
    monkeypatch.setattr(packages, "PACKAGES", entries)
    found = read_packages(probe=False)
    assert found["click"].usable
    assert not found["nowhere"].usable
    assert found["both"].problem == "click and rich are both installed and break each other"


def test_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    states = read_providers()
    assert "CPUExecutionProvider" in states.names
    assert (states.problems["cpu"], states.failure) == ("", "")
    # What is missing, and what to install: also with the GPU build, where there is no GPU.
    assert "Install" in states.problems["migraphx"] and "\n" not in states.problems["migraphx"]
    monkeypatch.setattr(packages, "PROVIDERS_PROGRAM", "raise ImportError('libcudart.so.13')")
    assert read_providers() == ProviderStates((), {}, "ImportError: libcudart.so.13")


def test_conclusions() -> None:
    def fp32(found: dict[str, PackageState], backend: str = "onnxruntime", gpu: bool = False) -> tuple[bool, bool, str]:
        row = next(row for row in capabilities(found, gpu) if (row.backend, row.precision) == (backend, "fp32"))
        return row.build, row.run, row.why_not

    assert fp32(states()) == (True, True, "")
    assert fp32(states(missing=("torch", "onnx"))) == (False, True, "build needs torch, onnx")
    assert fp32(states("onnxruntime")) == (True, False, "run needs onnxruntime")
    assert fp32(states("tokenizers")) == (True, False, "run needs tokenizers")
    assert fp32(states(), "tensorrt-rtx", gpu=True) == fp32(states(), "tensorrt", gpu=True) == (True, True, "")
    assert fp32(states(), "tensorrt-rtx") == (True, False, "run needs an NVIDIA GPU")
    assert fp32(states(), "tensorrt") == (False, False, "build needs an NVIDIA GPU; run needs an NVIDIA GPU")
    assert fp32(states("cuda.bindings"), "tensorrt-rtx", gpu=True) == (True, False, "run needs cuda.bindings")


def test_cpu(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(X86)
    cpu = read_cpu(tmp_path)
    assert (cpu.model, cpu.features) == ("Some CPU @ 2.00GHz", ("avx2", "fma", "avx512f", "avx512_vnni"))
    (tmp_path / "cpuinfo").write_text(ARM)
    assert read_cpu(tmp_path).features == ("asimd", "asimddp", "i8mm", "bf16")
    nowhere = read_cpu(tmp_path / "nowhere")
    assert (nowhere.features, nowhere.model != "") == ((), True)
    assert nowhere.logical_cores >= nowhere.usable_cores >= 1


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1048576\n"}, 1 << 20),
        ({"memory/memory.limit_in_bytes": "1048576\n"}, 1 << 20),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_memory(limits: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n")
    for name, value in limits.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value)
    assert read_memory(tmp_path, tmp_path) == Memory(2 << 20, 1 << 20, expected)


def test_memory_without_proc(tmp_path: Path) -> None:
    assert read_memory(tmp_path, tmp_path) == Memory(None, None, None)


def test_gpus(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"

    def answering(script: str) -> tuple[Gpu, ...]:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return read_gpus(str(program))

    rows = "Some GPU, 81559 MiB, 9.0, 580.1\\nOther GPU, 8192 MiB, 8.9, 580.1\\n"
    assert answering(f"printf '{rows}'") == (
        Gpu("Some GPU", "81559 MiB", "9.0", "580.1"),
        Gpu("Other GPU", "8192 MiB", "8.9", "580.1"),
    )
    assert answering("echo 'No devices were found'") == ()
    assert answering("exit 9") == ()
    assert read_gpus(str(tmp_path / "nowhere")) == ()


def test_broken_onnxruntime_is_reported_not_raised(tmp_path: Path) -> None:
    """An onnxruntime that does not import stands in front of the real one."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcublas.so.13: cannot open shared object file')")
    outcome = run_process("doctor", "--json", env={"PYTHONPATH": str(tmp_path)})
    facts = json.loads(outcome.out)
    assert (outcome.code, facts["onnxruntime_providers"]) == (0, [])
    assert "libcublas.so.13" in facts["packages"]["onnxruntime"]["problem"]
    fp32 = next(row for row in facts["works"] if row["precision"] == "fp32")
    assert not fp32["run"]
    assert "onnxruntime" in fp32["why_not"]
