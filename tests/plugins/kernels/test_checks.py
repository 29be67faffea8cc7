"""The kernels themselves, in Triton's interpreter, against the definitions of their ops; and that checks can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from dsv3export.plugins.kernels.catalogue import CHECKS
from dsv3export.plugins.kernels.checks import distance, run_checks
from tests.support.command_line import run_process

OPS = sorted({check.op for check in CHECKS})


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    """What ``dsv3export kernels test`` says; a process of its own, which interprets."""
    pytest.importorskip("triton")
    outcome = run_process("kernels", "test", "--json")
    assert outcome.out, outcome.err
    found: list[dict[str, Any]] = json.loads(outcome.out)["checks"]
    assert outcome.code == (0 if all(row["passed"] for row in found) else 1), outcome.err
    return found


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_kernels_compute_what_their_op_defines(op: str, outcomes: list[dict[str, Any]]) -> None:
    rows = [row for row in outcomes if row["op"] == op]
    assert len(rows) == sum(len(check.dtypes) for check in CHECKS if check.op == op)
    assert [row for row in rows if not row["passed"]] == []


@pytest.mark.slow
def test_kernels_compute_what_their_op_defines_at_any_shape() -> None:
    pytest.importorskip("triton")
    worker = "tests.plugins.kernels.shapes_worker"
    done = subprocess.run([sys.executable, "-m", worker], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [
        *("fp8_linear", "int_linear", "decode", "decode_fp8", "prefill", "append", "order", "experts")
    ]


def test_a_kernel_that_writes_nothing_fails_each_check() -> None:
    assert not any(outcome.passed for outcome in run_checks(CHECKS, lambda *_: None, 90, every_tile=False))


def test_the_names_of_checks_are_unique() -> None:
    assert len({(check.op, check.name) for check in CHECKS}) == len(CHECKS)


def test_distance() -> None:
    right = torch.tensor([3.0, 4.0])
    assert distance(right.to(torch.bfloat16), right) == 0.0
    assert distance(torch.tensor([3.0, 4.5]), right) == pytest.approx(0.1)
    assert distance(torch.tensor([3.0, float("nan")]), right) == float("inf")
    assert distance(torch.tensor([[3.0, 4.0]]), right) == float("inf")
    assert distance(torch.tensor([3.0, 4.0 + 1e-6]), right, exact=True) == float("inf")
    assert distance(torch.zeros(2), torch.zeros(2)) == 0.0
