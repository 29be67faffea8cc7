"""The script for machines with a GPU, tried with the engines that the CPU runs too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_script_checks_and_measures(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    settings = {
        "provider": "cpu", "preset": "smoke", "prompt-tokens": "4,8", "new-tokens": 3, "passes": 1, "tokens": 255,
        "work-dir": tmp_path, "json": out,
    }  # fmt: skip
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "benchmarks/provider_cuda.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert list(cases) == ["fp32", "int8 in f16", "int4 in f16"]
    assert cases["fp32"]["golden_continuations"] == 8
    assert all(facts["right"] and facts["tokens_per_s"]["8"]["decode"] > 0 for facts in cases.values())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
