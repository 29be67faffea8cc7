"""`benchmarks/kernels.py`: its whole way in Triton's interpreter, its options, and what it says without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import kernels
from benchmarks.gpu.shapes import CASES, QUICK, TINY


def cases(*arguments: str) -> list[str]:
    return [f"{case.kernel} {case.shape}" for case in kernels.chosen(kernels._options(arguments))]


@pytest.mark.slow
def test_every_kernel_is_checked_by_the_interpreter(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found = tmp_path / "found.json"
    command = [sys.executable, root / "benchmarks" / "kernels.py", "--interpret", "--json", found]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(TINY)} cases, 0 wrong, 0 left out" in done.stdout
    document = json.loads(found.read_text(encoding="utf-8"))
    assert len(document["results"]) == len(TINY)
    assert all(row["right"] and row["times"]["microseconds"] is None for row in document["results"])
    assert document["device"] == "Triton's interpreter"


@pytest.mark.slow
def test_an_interpreters_times_make_no_table(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, root / "benchmarks" / "kernels.py", "--interpret", "--tune", "--kernels", "quantise"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tuned QuantiseActivations" in done.stdout
    assert "wrote" not in done.stdout


def test_what_is_chosen() -> None:
    assert len(cases()) == len(CASES)
    assert len(cases("--quick")) == len(QUICK)
    assert cases("--kernels", "fp8_gemm", "--shapes", "M=64 N=2112,M=1 K=512") == [
        "fp8_gemm M=64 N=2112 K=7168",
        "fp8_gemm M=1 N=32768 K=512",
    ]
    assert cases("--shapes", "M=6") == []


def test_an_unknown_kernel_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kernels.main(["--kernels", "fp8_gem"])
    assert ended.value.code == 2
    assert "expected names of fp8_gemm" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_interpreter_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main(["--quick"]) == 2
    assert "--interpret needs none" in capsys.readouterr().out


def test_time_that_is_up_leaves_cases_out() -> None:
    left: list[str] = []
    assert list(kernels._within(TINY, 0.0, left)) == []
    assert left == [f"{case.kernel}: {case.shape}" for case in TINY]
