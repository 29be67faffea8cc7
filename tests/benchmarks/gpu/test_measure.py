"""The benchmark's logic with a timer of the test's own: checks before times, shares, peers, tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import measure, report
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.measure import Bench, PeerResult, Result, measured, tuned
from benchmarks.gpu.shapes import TINY_MODEL, Case, floor_of
from benchmarks.gpu.timing import Times, copies_for
from benchmarks.gpu.work import Choice, Source, Work, quantise
from dsv3export.plugins.kernels.op_kernels import OpKernels
from dsv3export.plugins.kernels.plugin import Launch
from dsv3export.plugins.kernels.tuning import Tuning
from dsv3export.plugins.linear_fp8_block.matmul import quantise_activations

CASE = Case.of("quantise", M=3, K=256)
LIMITS = Limits(1e9, {"bf16": 1e12})
KEPT: list[int] = []


def no_launch(launch: Launch, inputs: Any, outputs: Any) -> None:
    """Remembers how many rows a program takes, which tells the tile."""
    KEPT.append(int(dict(launch.build.constants)["ROWS"] or 0))


def rows_as_time(run: Callable[[int], object], copies: int) -> Times:
    """A larger tile takes longer."""
    KEPT.clear()
    run(0)
    return Times(float(KEPT[0]) if KEPT else 4.0, 1.0, 9.0)


@pytest.fixture
def bench() -> Bench:
    cpu = torch.device("cpu")
    return Bench(no_launch, 90, cpu, 4, rows_as_time, Tuning("fake"), TINY_MODEL, 1000, 4000)


def right_work(result: Tensor) -> Work:
    work = quantise(CASE, Source(torch.device("cpu")), 2)
    return replace(work, run=lambda ops, copy: result)


def values() -> Tensor:
    (x,) = quantise(CASE, Source(torch.device("cpu")), 1).sets[0]
    return quantise_activations(x.float())[0]


def test_a_kernel_that_writes_nothing_is_wrong_and_has_no_time(bench: Bench) -> None:
    result = measured(CASE, quantise(CASE, Source(bench.device), 2), bench, LIMITS)
    assert not result.right
    assert math.isnan(result.times.microseconds)
    assert "WRONG" in report.line(result)


def test_a_right_one_has_shares_of_what_was_measured(bench: Bench) -> None:
    result = measured(CASE, right_work(values()), bench, LIMITS)
    assert result.right
    floor = floor_of(CASE)
    assert result.times.microseconds == 4.0
    assert result.floor_microseconds == pytest.approx(floor.bytes / 1e9 * 1e6)
    assert result.of_bandwidth == pytest.approx(floor.bytes / 4e-6 / 1e9)
    assert (result.copies, result.out_of_cache) == (2, 2 * floor.bytes > 1000)
    assert f"{result.times.microseconds / result.floor_microseconds:.2f}" in report.line(result)


def test_peers_are_checked_and_refused_by_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Callable[[int], Tensor]:
        raise ImportError("no such library")

    def peers(*_: Any) -> Iterator[tuple[str, Callable[[], Callable[[int], Tensor]]]]:
        yield "right", lambda: lambda copy: values()
        yield "wrong", lambda: lambda copy: values().float() * 1.5
        yield "torch _scaled_mm rows (other numbers)", lambda: lambda copy: torch.zeros(1)
        yield "missing", missing

    monkeypatch.setattr(measure, "peers_of", peers)
    result = measured(CASE, right_work(values()), bench, LIMITS)
    by_name = {peer.name: peer for peer in result.peers}
    assert by_name["right"].microseconds == 4.0
    assert (by_name["wrong"].microseconds, by_name["wrong"].refused) == (None, "other numbers than the reference's")
    assert by_name["missing"] == PeerResult("missing", refused="ImportError: no such library")
    assert by_name["torch _scaled_mm rows (other numbers)"].error is None
    assert result.best_peer == by_name["right"]
    assert result.ratio == 1.0


def test_tuning_takes_the_fastest_tile_and_choice(bench: Bench) -> None:
    plain = quantise(CASE, Source(bench.device), 1)
    choice = Choice("linear", {"rows": 3}, (1, 2, 4))

    def run(ops: OpKernels, copy: int) -> Tensor:
        result = plain.run(ops, copy)
        # The more parts, the shorter.
        KEPT[:] = [100 // ops._tuning.choice("linear", {"rows": 3}, 1)]
        return result

    table = tuned(CASE, replace(plain, run=run, choices=(choice,)), bench)
    (tile,) = table.tiles
    assert (tile.plugin, tile.tile.rows, tile.microseconds) == ("QuantiseActivations", 4, 4.0)
    (chosen,) = table.choices
    assert (chosen.value, chosen.microseconds, chosen.default_microseconds) == (4, 25.0, 100.0)


def test_tuning_leaves_out_what_the_device_cannot_launch(bench: Bench) -> None:
    def refuse(launch: Launch, inputs: Any, outputs: Any) -> None:
        no_launch(launch, inputs, outputs)
        if KEPT[-1] == 4:
            raise RuntimeError("out of shared memory")

    work = quantise(CASE, Source(bench.device), 1)
    assert tuned(CASE, work, replace(bench, run=refuse)).tiles == ()


@pytest.mark.parametrize(("nbytes", "copies"), [(10, 64), (1000, 3), (1, 64), (2000, 2), (10**9, 1)])
def test_copies_exceed_the_cache_within_memory(nbytes: int, copies: int) -> None:
    assert copies_for(nbytes, 1000, 4000) == copies


def result_of(case: Case, microseconds: float) -> Result:
    times = Times(microseconds, microseconds, microseconds)
    return Result(case.kernel, case.shape, 0.0, 0.1, floor_of(case), times, 1.0, 0.5, math.nan, 1, True)


def test_results_of_runs_are_merged_and_have_no_nan(tmp_path: Path) -> None:
    other = Case.of("quantise", M=8, K=256)
    path = tmp_path / "results.json"
    runs = (("monday", CASE, 1.0), ("monday", other, 2.0), ("tuesday", other, 3.0))
    for date, case, microseconds in runs:
        rows = [result_of(case, microseconds).to_json()]
        made = {"device": "fake", "date": date}
        content = report.document(made, Limits(1.0, {"fp8": math.nan}), rows, ["quantise: M=8 K=256", "x: y"])
        report.write(path, report.merged(report.read(path), content))
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["shape"], row["times"]["microseconds"], row["date"]) for row in found["results"]] == [
        ("M=3 K=256", 1.0, "monday"),
        ("M=8 K=256", 3.0, "tuesday"),
    ]
    assert found["limits"] == {"bandwidth": 1.0, "rates": {"fp8": None}}
    assert found["left_out"] == ["x: y"]
    assert found["results"][0]["of_matmul"] is None
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_no_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert report.read(path) is None
    path.write_text("[1", encoding="utf-8")
    assert report.read(path) is None
    path.write_text("[1]", encoding="utf-8")
    assert report.read(path) is None


def test_files_are_named_after_the_device() -> None:
    assert report.results_path("NVIDIA H100 80GB HBM3").name == "kernels-nvidia-h100-80gb-hbm3.json"
