"""The scale benchmark's one command, on its smallest model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import broken_bounds

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_command_measures_and_cleans_up(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "result.json"
    work.mkdir()
    options = ["--preset=smoke", "--layers=1:", "--precision=int8", f"--work-dir={work}", f"--json={out}"]
    command = [sys.executable, "benchmarks/scale.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["fp8"]["total"]["wall"] > 0 and result["fp8"]["parameters"]["total"] > 0
    assert result["slice"]["layers"] == [1] and result["slice"]["engine_bytes"] > 0
    assert result["slice"]["parameters"] < result["fp8"]["parameters"]["total"]


def test_bounds() -> None:
    def built(seconds: float, memory: float, size: float) -> dict[str, Any]:
        return {"total": {"wall": seconds}, "peak_rss_bytes": memory, "engine_bytes": size}

    assert broken_bounds({"fp8": built(119, 3.9e9, 49e6), "slice": built(5000, 3.9e9, 7e9)}) == []
    broken = broken_bounds({"fp8": built(121, 4.1e9, 51e6), "slice": built(1, 4.1e9, 1)})
    assert [line.partition(":")[0] for line in broken] == [
        "fp8 build, seconds",
        "fp8 build, bytes of memory",
        "fp8 engine, bytes",
        "build of the slice, bytes of memory",
    ]
