"""The benchmark of `diff`, on a model of a second's work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.diff import broken_bounds, summary


def test_smoke(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    options = ["--preset=smoke", "--tokens=8", "--prompts=2", "--rounds=1", "--steps=2", f"--json={out}"]
    subprocess.run([sys.executable, "benchmarks/diff.py", *options], cwd=root, check=False, capture_output=True)
    result = json.loads(out.read_text())
    assert result["diff"][0]["values"] > 50 and result["diff"][0]["kl_mean"] < 1e-3
    assert set(result["steps"]) == {"before", "hidden", "between", "captured", "after"}
    assert result["summary"]["time_ratio"] > 0 and "--json" in result["command"]


def test_bounds() -> None:
    steps = {name: {"median_ms": 2.0} for name in ("before", "hidden", "after")}
    runs = {name: [{"wall": 1.0, "peak_rss_bytes": 1}] for name in ("diff_executor", "diff_engine")}
    fast = {
        **runs,
        "diff": [{"wall": 5.9, "peak_rss_bytes": 1.1e9, "largest_layer_bytes": 200_000_000}],
        "steps": steps,
    }
    assert broken_bounds(summary(fast)) == []
    slow = {**fast, "diff": [{"wall": 6.1, "peak_rss_bytes": 1.3e9, "largest_layer_bytes": 200_000_000}]}
    broken = broken_bounds(summary(slow))
    assert [line.split(":")[0] for line in broken] == ["time_ratio", "bytes_beyond_largest_layer"]
