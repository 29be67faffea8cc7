"""`dsv3export kernels`: what it lists, and what it refuses. Its checks are run by tests/plugins/kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import assert_refused, run_here


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3EXPORT_KERNEL_CACHE", str(tmp_path / "kernels"))


def test_compile_lists_what_a_kernel_takes() -> None:
    pytest.importorskip("triton")
    outcome = run_here("kernels", "compile", "--targets", "sm_89,sm_90", "--kernel", "quantise_activations", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows = json.loads(outcome.out)["kernels"]
    assert {row["target"] for row in rows} == {"sm_89", "sm_90"}
    for row in rows:
        assert row["kernel"] == "quantise_activations"
        assert row["constants"]["K"] == 7168
        assert row["ptx_bytes"] > 1000
        assert 0 < row["registers"] <= 255
        assert row["spilled_bytes"] == 0
        assert row["wide_loads"] > 0
        assert row["programs_a_processor"] > 0
        assert row["programs"] == 56 * -(-64 // row["constants"]["ROWS"])
        # 64 tokens at 16 bits and at 8 with a scale for each 128.
        assert row["moved_bytes"] == 64 * 7168 * 3 + 64 * 56 * 4
    floors = {row["device"]: row["floor_microseconds"] for row in rows}
    assert floors == {"rtx-4090": 1.38, "h100": 0.42}
    shown = run_here("kernels", "compile", "--targets", "sm_90", "--kernel", "quantise_activations")
    assert "registers" in shown.out
    assert "K=7168" in shown.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("compile", "--targets", "sm_75"), ["--targets", "sm_80, sm_89, sm_90", "got sm_75"]),
        (("compile", "--targets", ""), ["--targets", "got nothing"]),
        (("compile", "--targets", "sm_90,"), ["--targets", "got nothing"]),
        (("compile", "--kernel", "gemm"), ["--kernel gemm", "fp8_block_gemm", "got gemm"]),
        (("test", "--op", "Softmax"), ["--op Softmax", "LinearFp8Block", "got Softmax"]),
    ],
)
def test_bad_requests(options: tuple[str, ...], says: list[str], tmp_path: Path) -> None:
    assert_refused(run_here("kernels", *options), says, tmp_path)
