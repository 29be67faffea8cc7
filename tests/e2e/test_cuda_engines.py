"""Engines for the CUDA provider, computed on the CPU: what can be known of them without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.provider_cases import CASES, ProviderCase
from dsv3export import Engine
from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError
from dsv3export.evaluate import Comparison, compare
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.onnxruntime_module import ort
from tests.support.rounded_engine import rounded_engine

TOKENS = 1020


@pytest.fixture(scope="module", params=CASES)
def compared(
    request: pytest.FixtureRequest, tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory, root: Path
) -> tuple[ProviderCase, Comparison]:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("cuda")
    (folder / "recipe.toml").write_text(case.recipe)
    built = folder / "cuda.engine"
    build_engine(tiny_bf16, built, recipe=folder / "recipe.toml", provider="cuda", compute=case.compute)
    engine = Engine.load(rounded_engine(built, folder / "cpu.engine"), threads=1)
    executor = Executor(Checkpoint.open(tiny_bf16), recipe=EngineFiles.open(built).manifest.recipe)
    ids = json.loads((root / "tests/data/goldens/heldout_token_ids.json").read_text())
    return case, compare(engine, executor, ids[:TOKENS])


def test_predictions_agree_with_the_executor(compared: tuple[ProviderCase, Comparison]) -> None:
    case, comparison = compared
    assert comparison.kl_mean <= case.kl
    assert comparison.top1_agreement >= case.top1
    assert abs(comparison.perplexity_ratio - 1) <= 0.01


def golden_prompts(goldens: Callable[[str], Path]) -> list[dict[str, Any]]:
    prompts: list[dict[str, Any]] = json.loads((goldens("bf16") / "goldens.json").read_text())["prompts"]
    return prompts


def test_float32_goldens_on_the_cpu(tiny_bf16: Path, tmp_path: Path, goldens: Callable[[str], Path]) -> None:
    """A float32 engine for CUDA runs on the CPU as it is: prefill, decoding, ragged batches."""
    build_engine(tiny_bf16, tmp_path / "e", provider="cuda")
    engine = Engine.load(tmp_path / "e", threads=1, provider="cpu")
    prompts = golden_prompts(goldens)
    results = engine.generate([prompt["ids"] for prompt in prompts], 48, ignore_eos=True)
    assert [result.token_ids for result in results] == [prompt["greedy_ids"] for prompt in prompts]


def test_float16_engines_run_on_the_cpu_as_they_are(tiny_bf16: Path, tmp_path: Path) -> None:
    """ONNX Runtime widens float16 by itself; then decoding token by token is as good as a whole pass."""
    build_engine(tiny_bf16, tmp_path / "e", precision="int4", provider="cuda", compute="f16")
    engine = Engine.load(tmp_path / "e", threads=1, provider="cpu")
    prompt = [0, 61, 18, 276, 17, 5, 88]
    whole = engine.logits(prompt)
    one_by_one = Engine.load(tmp_path / "e", threads=1, provider="cpu", prefill_chunk=1).logits(prompt)
    np.testing.assert_allclose(one_by_one, whole, atol=0.05)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="needs a build without CUDA")
def test_bfloat16_engines_do_not_fall_back(tiny_bf16: Path, tmp_path: Path) -> None:
    build_engine(tiny_bf16, tmp_path / "e", precision="int4", provider="cuda")
    assert EngineFiles.open(tmp_path / "e").manifest.backend.providers == ("cuda",)
    with pytest.raises(
        BackendError, match=r"provider cuda: ONNX Runtime .* expected a build with CUDAExecutionProvider"
    ):
        Engine.load(tmp_path / "e")
    with pytest.raises(BackendError, match=r"provider: expected cuda, got cpu\. Rebuild it with --provider cpu"):
        Engine.load(tmp_path / "e", provider="cpu")
