"""The comparison of quality, on part of the held-out text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_model_is_compared_with_float32_on_the_same_tokens(tmp_path: Path) -> None:
    for package in ("gguf", "llama_cpp"):
        pytest.importorskip(package, reason="`make bench-setup` installs it")
    heldout = (ROOT / "tests/data/goldens/heldout.txt").read_text(encoding="utf-8")
    text, out = tmp_path / "text.txt", tmp_path / "result.json"
    text.write_text(heldout[:3000], encoding="utf-8")
    command = [sys.executable, "benchmarks/quality.py", f"--text={text}", f"--calibration={text}", f"--json={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    rows = result["rows"]
    exact, fewer_bits = {"dsv3export float32", "llama.cpp F32"}, {"dsv3export int4", "llama.cpp Q4_0, head Q8_0"}
    assert result["settings"]["tokens"] > 500
    assert all(rows[name]["kl_mean"] < 1e-5 for name in exact)
    assert all(rows["dsv3export int8"]["kl_mean"] < rows[name]["kl_mean"] < 0.05 for name in fewer_bits)
    assert all(row["top1_agreement"] > 0.9 for row in rows.values())
    assert str(tmp_path) not in json.dumps({**result, "command": ""})
