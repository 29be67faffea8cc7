"""Models are made once and only whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import models as module
from benchmarks.models import Models


def test_a_finished_checkpoint_is_used_again_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    checkpoint = Models(tmp_path, "smoke").checkpoint
    shard = next(checkpoint.glob("*.safetensors"))
    made = shard.stat().st_mtime_ns
    assert Models(tmp_path, "smoke").checkpoint == checkpoint
    assert shard.stat().st_mtime_ns == made
    (checkpoint / "config.json").unlink()
    assert Models(tmp_path, "smoke").checkpoint == checkpoint
    assert shard.stat().st_mtime_ns > made


def test_engines_are_built_anew_unless_asked_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def worker(kind: str, threads: int, **job: Any) -> dict[str, Any]:
        built.append(job["precision"])
        job["engine"].mkdir(exist_ok=True)
        return {"engine_bytes": 1}

    monkeypatch.setattr(module, "run_worker", worker)
    engine, facts = Models(tmp_path, "smoke").engine("int4", 2)
    assert len(facts) == 2
    assert Models(tmp_path, "smoke", reuse_engines=True).engine("int4", 2) == (engine, [])
    assert Models(tmp_path, "smoke").engine("int4", 1) == (engine, facts[:1])
    assert built == ["int4"] * 3
