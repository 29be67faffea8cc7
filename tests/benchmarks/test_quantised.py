"""The comparison of quantised engines, on its smallest model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_command_measures_every_subject_and_checks_it(tmp_path: Path) -> None:
    for package in ("gguf", "llama_cpp"):
        pytest.importorskip(package, reason="`make bench-setup` installs it")
    settings = {
        "preset": "smoke", "threads": 1, "prefill-tokens": "8,16", "new-tokens": 3, "repeats": 2, "passes": 1,
        "patience": 0, "tries": 1, "transformers": "default", "models": tmp_path, "json": tmp_path / "result.json",
    }  # fmt: skip
    command = [sys.executable, "benchmarks/quantised.py", *(f"--{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dsv3export int4 / llama.cpp Q4_0" in done.stdout
    assert {path.name for path in tmp_path.glob("*.gguf")} == {f"smoke-{t}.gguf" for t in ("BF16", "Q8_0", "Q4_0")}
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    found = result["threads"]["1"]
    ours, peers = {"dsv3export int8", "dsv3export int4"}, {"llama.cpp Q8_0", "llama.cpp Q4_0"}
    assert set(found["subjects"]) == {*ours, *peers, "transformers bf16 default"} == set(found["agreement"])
    assert {name: len(runs) for name, runs in found["runs"].items() if name not in {*ours, *peers}} == {
        "transformers bf16 default": 1
    }
    assert all(figures["prefill_16_tokens_per_s_cpu"]["low"] > 0 for figures in found["subjects"].values())
    assert result["weights"]["llama.cpp Q4_0"]["total"] < result["weights"]["llama.cpp Q8_0"]["total"]
