"""The estimates from machine code: what a step streams, and that the kept tables are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernel_estimates import step_bytes, step_of

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "kernels-estimates.json"


def row(kernel: str, plugin: str = "", **constants: Any) -> dict[str, Any]:
    counts = {"step_instructions": 200, "warps": 8, "programs_a_processor": 2}
    return {"kernel": kernel, "plugin": plugin, "constants": constants, **counts}


@pytest.mark.parametrize(
    ("given", "streamed"),
    [
        (row("fp8_block_gemm", ROWS=16, COLUMNS=64), 64 * 128),
        (row("weight_only_gemm", ROWS=16, COLUMNS=128, INNER=128, FORMAT="int4"), 128 * 64),
        (row("moe_gate_up", ROWS=16, COLUMNS=64, INNER=64, FORMAT="plain"), 2 * 64 * 64 * 2),
        (row("moe_gate_up", "MoEGateUpFp8Rounded", ROWS=16, COLUMNS=64, INNER=64, FORMAT="fp8"), 2 * 64 * 128),
        (row("mla_split", TOKENS=64, DC=512, DR=64, GROUPS=0), 64 * 1152),
        (row("mla_split", TOKENS=32, DC=512, DR=64, GROUPS=4), 32 * 648),
        (row("moe_down", ROWS=64, COLUMNS=64, INNER=64, FORMAT="plain"), None),
    ],
)
def test_what_a_step_streams(given: dict[str, Any], streamed: int | None) -> None:
    assert step_bytes(given) == streamed


def test_clocks_of_a_step() -> None:
    step = step_of(row("mla_split", TOKENS=64, DC=512, DR=64, GROUPS=0, ROWS=16, H=16))
    assert step is not None
    # 64 * 1152 bytes at 3.35 TB/s / 132 / 1.83 GHz; 200 instructions of eight warps on four schedulers.
    assert (step["memory_clocks"], step["issue_clocks"]) == (5317, 400)


def test_the_kept_tables_have_every_target_and_matrix_instructions() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = kept["kernels"]
    assert {each["target"] for each in rows} == {"sm_80", "sm_89", "sm_90", "sm_100", "sm_120"}
    assert all(each["matrix_instructions"] for each in rows if each["flops"])
    assert all(entry.keys() == {"change", "prediction", "outcome", "kept"} for entry in kept["log"])
