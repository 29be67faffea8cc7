"""The benchmark's one command, on its smallest model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.decode import OURS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_command_measures_compares_and_cleans_up(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "result.json"
    work.mkdir()
    settings = {
        "preset": "smoke",
        "threads": 1,
        "prefill-tokens": 8,
        "new-tokens": 3,
        "repeats": 1,
        "passes": 2,
        "patience": 0,
    }
    options = [f"--{name}={value}" for name, value in {**settings, "work-dir": work, "json": out}.items()]
    command = [sys.executable, "benchmarks/decode.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ours / theirs" in done.stdout
    assert list(work.iterdir()) == []
    result = json.loads(out.read_text(encoding="utf-8"))
    found = result["threads"]["1"]
    assert set(found["subjects"]) == {OURS, "transformers f32 eager", "transformers f32 default"}
    assert set(found["ratios"][OURS]) == set(found["subjects"]) - {OURS}
    assert all(one["agree"] and one["tokens"] == 4 for one in found["agreement"].values())
    assert found["subjects"][OURS]["decode_tokens_per_s_wall"]["median"] > 0
    assert result["machine"]["packages"]["onnxruntime"]
    assert str(tmp_path) not in json.dumps({**result, "command": ""})
