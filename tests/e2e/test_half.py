"""Engines and executor with bfloat16 and float16 weights: lossless where the checkpoint has them, bounded elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3export import Engine
from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import checkpoint_tensors
from dsv3export.dtypes import NUMPY
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.recipe import COMPONENTS, LAYER_COMPONENTS, Recipe
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession
from tests.e2e.goldens import Golden, greedy
from tests.e2e.variants import token_ids
from tests.support.compare import LOGITS, OP, assert_close
from tests.support.synthetic import random_checkpoint, tiny_config

BF16 = Recipe.for_precision("bf16")
F16 = Recipe.from_json({"precision": "bf16", "components": {name: {"format": "f16"} for name in COMPONENTS}})
RECIPES = {"bf16": BF16, "f16": F16}


def write_recipe(folder: Path, format: str) -> Path:
    path = folder / f"{format}.toml"
    tables = [f'[components.{name}]\nformat = "{format}"\n' for name in COMPONENTS]
    path.write_text('precision = "bf16"\n' + "".join(tables))
    return path


@pytest.fixture(scope="module")
def engine_path(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "engine"
    build_engine(tiny_bf16, path, precision="bf16")
    return path


@pytest.fixture(scope="module")
def heldout(root: Path) -> list[int]:
    ids: list[int] = json.loads((root / "tests/data/goldens/heldout_token_ids.json").read_text())
    return ids[:150]


def test_a_bf16_checkpoint_loses_nothing(engine_path: Path, bf16_golden: Golden) -> None:
    """transformers computed these from the same weights in float32."""
    engine = Engine.load(engine_path, threads=1)
    executor = Executor.from_checkpoint(bf16_golden.checkpoint, recipe=BF16)
    for prompt, row in enumerate(bf16_golden.arrays("last_logits")["last_logits"]):
        ids = bf16_golden.ids(prompt)
        assert_close(engine.logits(ids)[-1], row, LOGITS, f"engine, prompt {prompt}")
        assert_close(executor.logits(ids)[-1], row, LOGITS, f"executor, prompt {prompt}")


def test_intermediates_are_numpys(tiny_bf16: Path) -> None:
    """Also the rows of the embedding before they are cast."""
    seen = Executor.from_checkpoint(tiny_bf16, recipe=BF16).intermediates([5, 6])
    assert seen["embed_tokens.stored"].dtype == NUMPY["BF16"]
    np.testing.assert_array_equal(seen["embed_tokens.stored"].astype(np.float32), seen["embed_tokens"])


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_greedy_tokens_of_a_ragged_batch(chunk: int, engine_path: Path, bf16_golden: Golden) -> None:
    session = OnnxRuntimeSession(EngineFiles.open(engine_path), threads=1)
    prompts = [bf16_golden.ids(prompt) for prompt in range(len(bf16_golden.prompts))]
    expected = [prompt["greedy_ids"] for prompt in bf16_golden.prompts]
    tokens = greedy(session, prompts, len(expected[0]), slots=3, chunk=chunk)
    assert tokens == expected


@pytest.mark.parametrize("format", RECIPES)
@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_engine_agrees_with_the_executor(
    format: str, chunk: int, tiny_fp8: Path, heldout: list[int], tmp_path: Path
) -> None:
    """An FP8 checkpoint is converted: rounded once more, alike by both; few rows at a time and many."""
    build_engine(tiny_fp8, tmp_path / "engine", recipe=write_recipe(tmp_path, format))
    expected = Executor.from_checkpoint(tiny_fp8, recipe=RECIPES[format]).logits(heldout)
    actual = Engine.load(tmp_path / "engine", threads=1, prefill_chunk=chunk).logits(heldout)
    assert_close(actual, expected, OP * float(np.abs(expected).max()))


@pytest.mark.parametrize(("format", "bound"), [("bf16", 1e-2), ("f16", 1.25e-3)])
def test_rounding_a_float32_checkpoint_strays_little(format: str, bound: float, tmp_path: Path) -> None:
    """8 and 11 bits of precision: the logits' relative error is of the size of the weights'."""
    config = tiny_config()
    path, ids = random_checkpoint(tmp_path / "checkpoint", config, seed=8, dtype="F32"), token_ids(config)
    exact = Executor.from_checkpoint(path).logits(ids)
    rounded = Executor.from_checkpoint(path, recipe=RECIPES[format]).logits(ids)
    error = float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))
    assert 0.2 * bound < error < bound


def test_weights_are_the_checkpoints_bytes(engine_path: Path, tiny_bf16: Path) -> None:
    """Matrices and banks as they are stored; only the router's bias and the norms are widened."""
    files, checkpoint = EngineFiles.open(engine_path), Checkpoint.open(tiny_bf16)
    for name, entry in files.entries.items():
        if entry.dtype == "BF16":
            sources = checkpoint_tensors(name, checkpoint.config)
            stored = b"".join(checkpoint.array(source).tobytes() for source in sources)
            assert files.weight(name).tobytes() == stored, name
    halves = {name for name, entry in files.entries.items() if entry.dtype == "BF16"}
    matrices = {
        name for name, info in checkpoint.tensors.items()
        if len(info.shape) == 2 and ".experts." not in name and "gate.weight" not in name and "layers.4." not in name
    }  # fmt: skip
    assert matrices <= halves
    banks = {f"model.layers.{i}.mlp.experts.{part}_proj" for i in (1, 2, 3) for part in ("gate", "up", "down")}
    assert banks <= halves


@pytest.mark.parametrize("format", ["fp32", "bf16", "f16"])
@pytest.mark.parametrize("component", [*LAYER_COMPONENTS, "head"])
def test_each_component_by_itself(component: str, format: str, tmp_path: Path) -> None:
    """Around it bf16, so that rows of ops for 16 bits and for 32 stand side by side."""
    config = tiny_config()
    path = random_checkpoint(tmp_path / "checkpoint", config, seed=9, dtype="F32", tokenizer_from=None)
    (tmp_path / "recipe.toml").write_text(f'precision = "bf16"\n[components.{component}]\nformat = "{format}"\n')
    build_engine(path, tmp_path / "engine", recipe=tmp_path / "recipe.toml")
    ids = token_ids(config)
    expected = Executor.from_checkpoint(path, recipe=Recipe.from_toml(tmp_path / "recipe.toml")).logits(ids)
    assert_close(Engine.load(tmp_path / "engine", threads=1).logits(ids), expected, LOGITS)


def test_large_weights_stay_in_the_checkpoint(tmp_path: Path) -> None:
    """By reference, also kv_b and those that are multiplied in tiles; two threads."""
    config: dict[str, Any] = tiny_config(hidden_size=1100, intermediate_size=1000, vocab_size=1000, kv_lora_rank=1024)
    config |= {"qk_nope_head_dim": 256, "v_head_dim": 256}
    path, ids = random_checkpoint(tmp_path / "checkpoint", config, seed=7, dtype="BF16"), token_ids(config)
    logits = {}
    for name, copy in (("referenced", False), ("copied", True)):
        report = build_engine(path, tmp_path / name, precision="bf16", copy_weights=copy)
        places = {entry.name for entry in report.manifest.weights if entry.location == "checkpoint"}
        mlp = {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
        attention = {f"model.layers.{i}.self_attn.kv_b_proj.weight" for i in range(2)}
        assert copy or mlp | attention | {"lm_head.weight"} <= places
        logits[name] = Engine.load(tmp_path / name, threads=2).logits(ids)
    np.testing.assert_array_equal(logits["referenced"], logits["copied"])
    assert_close(logits["referenced"], Executor.from_checkpoint(path).logits(ids), LOGITS)
