"""The benchmark of TensorRT-RTX builds: its one command, on its smallest model, and its bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tensorrt_build import broken_bounds

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_command_measures_and_cleans_up(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    work, out = tmp_path / "work", tmp_path / "result.json"
    work.mkdir()
    options = ["--preset=smoke", "--precisions", "fp8", f"--work-dir={work}", f"--json={out}"]
    command = [sys.executable, "benchmarks/tensorrt_build.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["checkpoint"], row["precision"]) for row in result["tiny"]] == [("fp8", "fp8"), ("bf16", "fp8")]
    for built in (*result["tiny"], result["true_shapes"]):
        assert built["total"]["wall"] > 0 and built["graph_bytes"]["moe_layer.prefill"] > 0


def test_bounds() -> None:
    def built(seconds: float, memory: float) -> dict[str, Any]:
        return {"true_shapes": {"total": {"wall": seconds}, "peak_rss_bytes": memory}}

    assert broken_bounds(built(299, 7.9e9)) == []
    broken = broken_bounds(built(301, 8.1e9))
    assert [line.partition(":")[0] for line in broken] == [
        "build at true shapes, seconds",
        "build at true shapes, bytes of memory",
    ]
