"""The bound of a build's memory, against the peak that the kernel has seen: all resident pages, mapped files too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sparse import write_sparse
from dsv3export.progress import NoProgress
from tests.support.synthetic import tiny_config

# Three banks of 0.27 GB each in float32, and as large a dense MLP.
CONFIG = tiny_config(
    hidden_size=1024, moe_intermediate_size=512, n_routed_experts=128, intermediate_size=65536, num_hidden_layers=2
)
BUILD = """
import json, sys
from dsv3export.errors import UserError
from dsv3export.graphs.build import build_engine


def status():
    return dict(line.split(":", 1) for line in open("/proc/self/status"))


try:
    report = build_engine(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
except UserError as error:
    print(json.dumps({"refused": str(error), "resident": int(status()["VmRSS"].split()[0]) << 10}))
else:
    print(json.dumps({"peak": int(status()["VmHWM"].split()[0]) << 10, "planned": report.memory_bytes}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_bf16: Path) -> Path:
    path = tmp_path_factory.mktemp("memory") / "checkpoint"
    write_sparse(path, CONFIG, tiny_bf16, NoProgress())
    return path


def build(checkpoint: Path, out: Path, root: Path, **options: Any) -> dict[str, Any]:
    """What a build in a process of its own reports."""
    command = [sys.executable, "-c", BUILD, str(checkpoint), str(out), json.dumps(options)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp8", "int8", "int4"])
def test_the_peak_is_within_the_least_bound(precision: str, checkpoint: Path, tmp_path: Path, root: Path) -> None:
    """The least bound that a build accepts is named when it is given less, and holds."""
    refused = build(checkpoint, tmp_path / "engine", root, precision=precision, max_memory=10**8, threads=2)
    assert list(tmp_path.iterdir()) == []
    least = re.search(r"^max_memory: expected at least ([0-9.]+) GB, .* Give --max-memory", refused["refused"])
    assert least is not None, refused
    bound = round(float(least[1]) * 1e9)
    assert bound - refused["resident"] < 4.5e8  # one bank's gate and up would alone be 0.54 GB
    # A little more than the least: the next process may begin a page or two larger.
    facts = build(checkpoint, tmp_path / "engine", root, precision=precision, max_memory=bound + 10**7, threads=2)
    assert facts["peak"] <= bound + 10**7
    assert facts["peak"] <= facts["planned"]


@pytest.mark.slow
def test_without_a_bound_the_plan_holds(checkpoint: Path, tmp_path: Path, root: Path) -> None:
    facts = build(checkpoint, tmp_path / "engine", root, precision="int8", threads=3)
    assert facts["peak"] <= facts["planned"] <= 3e9
