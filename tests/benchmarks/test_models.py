"""Models are made once and only whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import models as module
from benchmarks.models import Models
from dsv3export.recipe import Recipe


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


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_engines_are_the_presets_rounded_to_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    jobs: list[dict[str, Any]] = []

    def worker(kind: str, threads: int, **job: Any) -> dict[str, Any]:
        jobs.append(job)
        return {}

    monkeypatch.setattr(module, "run_worker", worker)
    Models(tmp_path, "smoke").engine(precision, 1)
    preset = Recipe.for_precision(jobs[0]["precision"])
    recipe = jobs[0]["options"].get("recipe")
    found = preset if recipe is None else Recipe.from_toml(recipe)
    assert preset.precision == precision
    assert found.components == {name: replace(one, method="rtn") for name, one in preset.components.items()}
