"""The bound of a build's memory, against the peak that the kernel has seen: all resident pages, mapped files too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sparse import write_sparse
from dsv3export.progress import NoProgress
from tests.support.synthetic import tiny_config

# Three banks of 0.13 GB each in float32 and a dense MLP of half that, of which making one at once takes 0.5 GB or more;
# units are a quarter of their usual size.
CONFIG = tiny_config(
    hidden_size=1024, moe_intermediate_size=512, n_routed_experts=64, intermediate_size=16384, num_hidden_layers=2
)
# Builds within given bounds until one is not refused; "least" stands for what the last refusal names, and a little
# more, as the process is a page or two larger then.
BUILD = """
import json, re, sys
from dsv3export.errors import ResourceError
from dsv3export.graphs import weight_units
from dsv3export.graphs.build import build_engine


def status(key):
    return int(dict(line.split(":", 1) for line in open("/proc/self/status"))[key].split()[0]) << 10


weight_units.UNIT_ELEMENTS = 1 << 21
source, out, options, bounds = sys.argv[1:3] + [json.loads(text) for text in sys.argv[3:]]
facts = {}
for bound in bounds:
    bound = facts["least"] + 10**7 if bound == "least" else bound
    try:
        report = build_engine(source, out, max_memory=bound, **options)
    except ResourceError as error:
        text = str(error)
        least = re.search("^max_memory: expected at least ([0-9.]+) GB, .* Give --max-memory", text)[1]
        facts = {"least": round(float(least) * 1e9), "resident": status("VmRSS")}
    else:
        facts |= {"bound": bound, "peak": status("VmHWM"), "planned": report.memory_bytes}
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_bf16: Path) -> Path:
    path = tmp_path_factory.mktemp("memory") / "checkpoint"
    write_sparse(path, CONFIG, tiny_bf16, NoProgress())
    return path


def build(checkpoint: Path, out: Path, root: Path, *bounds: Any, **options: Any) -> dict[str, Any]:
    """What builds in a process of their own report."""
    command = [sys.executable, "-c", BUILD, str(checkpoint), str(out), json.dumps(options), json.dumps(bounds)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp8", "int8", "int4"])
def test_the_peak_is_within_the_least_bound(precision: str, checkpoint: Path, tmp_path: Path, root: Path) -> None:
    """The least bound that a build accepts is named when it is given less, and holds."""
    facts = build(checkpoint, tmp_path / "engine", root, 10**8, "least", precision=precision, threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert facts["least"] - facts["resident"] < 2.2e8
    assert facts["peak"] <= facts["bound"]
    assert facts["peak"] <= facts["planned"]


@pytest.mark.slow
def test_without_a_bound_the_plan_holds(checkpoint: Path, tmp_path: Path, root: Path) -> None:
    facts = build(checkpoint, tmp_path / "engine", root, None, precision="int8", threads=3)
    assert facts["peak"] <= facts["planned"] <= 3e9
