"""The shipped tolerance profiles are what the benchmark writes: its names and runs, and figures of one arithmetic."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks.golden_profiles import _CHECKPOINTS, ARITHMETICS, _opened, _record
from dsv3export.golden.calibrate import BATCHINGS, THREADS, measure_noise
from dsv3export.golden.profile import shipped
from dsv3export.graphs.build import build_engine


@pytest.mark.parametrize("name", ARITHMETICS)
def test_names_and_runs_are_the_benchmark_s(name: str) -> None:
    by_name = {profile.name: profile for profile in shipped()}
    for profile in (by_name[name], by_name[f"same-{name}"]):
        assert len(profile.runs) == len(_CHECKPOINTS) * len(THREADS) * len(BATCHINGS)
        assert all(run.startswith(tuple(f"{variant} checkpoint: engine " for variant in _CHECKPOINTS))
                   for run in profile.runs)  # fmt: skip
    assert len(by_name) == 2 * len(ARITHMETICS)


@pytest.mark.slow
def test_one_run_measured_again(tmp_path: Path) -> None:
    """float32 of one checkpoint, the cheapest: every figure within its bound."""
    engine = tmp_path / "fp32.engine"
    build_engine(_CHECKPOINTS["bf16"], engine, precision="fp32", cache_dtype="fp32")
    found = measure_noise(_record("bf16", "fp32", "fp32"), partial(_opened, str(engine)), (1,), BATCHINGS[:1])
    profile = next(profile for profile in shipped() if profile.name == "fp32")
    assert f"bf16 checkpoint: {found.runs[0]}" in profile.runs
    made = found.profile("fp32", profile.margin)
    made_of = {bound.metric: bound for bound in made.bounds}
    assert made_of.keys() == {bound.metric for bound in profile.bounds}
    for bound in profile.bounds:
        assert made_of[bound.metric].largest <= bound.bound, bound.metric
