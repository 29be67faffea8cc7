"""`--executor-kernels`: a comparison of kernels with definitions, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.support.command_line import assert_refused, run_here, run_process


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("[5, 96, 33]\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_diff_holds_the_kernels_against_the_definitions(tiny_fp8: Path, prompts: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    found = tmp_path / "diff.json"
    outcome = run_process(
        "diff", tiny_fp8, tiny_fp8, "--prompts", prompts, "--json", found, "--quiet",
        "--executor-kernels", "triton-interpreter:bf16", "--precision", "fp8",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "kernels on Triton's interpreter, BF16" in " ".join(outcome.out.split())
    assert "first fault none beyond 0.02" in " ".join(outcome.out.split())
    assert 0 < json.loads(found.read_text())["logits"]["kl_mean"] < 1e-3


COMMANDS = (
    ("diff", "--prompts", "PROMPTS", "ENGINE", "ENGINE"),
    ("eval", "ENGINE", "--text", "PROMPTS"),
    ("golden", "record", "ENGINE", "--prompts", "PROMPTS", "-o", "OUT"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_engines_have_kernels_of_their_own(
    command: tuple[str, ...], tiny_engine: Path, prompts: Path, tmp_path: Path
) -> None:
    places = {"ENGINE": tiny_engine, "PROMPTS": prompts, "OUT": tmp_path / "out.golden"}
    outcome = run_here(*(places.get(word, word) for word in command), "--executor-kernels", "triton-interpreter")
    assert_refused(outcome, ("--executor-kernels triton-interpreter", "a checkpoint", "engines alone"), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_interpreter_is_offered(tiny_fp8: Path, prompts: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    assert os.environ.get("TRITON_INTERPRET") != "1"
    outcome = run_here("eval", tiny_fp8, "--text", prompts, "--executor-kernels", "triton:bf16")
    assert_refused(outcome, ("an NVIDIA GPU", "without a CUDA device", "triton-interpreter"), tmp_path)


def test_causes_are_the_executors_own(tiny_fp8: Path, tiny_engine: Path, prompts: Path, tmp_path: Path) -> None:
    outcome = run_here(
        "diff", tiny_fp8, tiny_engine, "--prompts", prompts, "--causes", "--executor-kernels", "triton"
    )  # fmt: skip
    assert_refused(outcome, ("--causes", "--executor-kernels"), tmp_path)
