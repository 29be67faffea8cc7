"""Calibration: what each weight is multiplied with, layer by layer, against the executor's intermediates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.errors import CheckpointError, RequestError
from dsv3export.graphs import Executor, calibration
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.quantise import ExpertInputs
from dsv3export.recipe import Recipe
from tests.support.synthetic import random_checkpoint, tiny_config

SEQUENCES = [[0, 5, 96, 33, 2, 7], [0, 11, 12, 13], [0, 90, 3, 3, 50, 61]]
LAYER = "model.layers.1"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("calibration") / "checkpoint"
    return Checkpoint.open(random_checkpoint(path, tiny_config(num_nextn_predict_layers=1), seed=2))


@pytest.fixture(scope="module")
def rows_of(checkpoint: Checkpoint) -> Callable[[str], NDArray[Any]]:
    """``rows_of("layers.0")``: that value in the executor, for the tokens of all sequences: [T, ...]."""
    executor = Executor(checkpoint)
    seen = [executor.intermediates(ids) for ids in SEQUENCES]
    return lambda name: np.concatenate([each[name].reshape(-1, each[name].shape[-1]) for each in seen])


@pytest.mark.parametrize(
    ("weight", "multiplied"),
    [
        ("model.layers.0.self_attn.q_a_proj.weight", "layers.0.input_layernorm"),
        ("model.layers.0.mlp.down_proj.weight", "layers.0.mlp.mul"),
        (f"{LAYER}.self_attn.o_proj.weight", "layers.1.self_attn.mla_attention"),
        (f"{LAYER}.self_attn.kv_a_proj_with_mqa.weight", "layers.1.input_layernorm"),
        (f"{LAYER}.mlp.shared_experts.up_proj.weight", "layers.1.post_attention_layernorm"),
        ("lm_head.weight", "norm"),
    ],
)
def test_linears(checkpoint: Checkpoint, rows_of: Callable[[str], NDArray[Any]], weight: str, multiplied: str) -> None:
    x = rows_of(multiplied).astype(np.float64)
    found = Calibration(checkpoint, SEQUENCES).hessian_of(weight)(0)
    np.testing.assert_allclose(found, x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_experts(checkpoint: Checkpoint, rows_of: Callable[[str], NDArray[Any]]) -> None:
    x, ids, weights = (rows_of(f"layers.1.mlp.{name}") for name in ("reshape", "gate.ids", "gate.weights"))
    inputs = ExpertInputs(x, ids, weights)
    run = Calibration(checkpoint, SEQUENCES)
    for expert in range(checkpoint.config.n_routed_experts):
        gate, up = (checkpoint.float32(f"{LAYER}.mlp.experts.{expert}.{p}_proj.weight").copy() for p in ("gate", "up"))
        for bank in ("gate", "up"):
            found = run.hessian_of(f"{LAYER}.mlp.experts.{bank}_proj")(expert)
            np.testing.assert_allclose(found, inputs.hessian(expert), rtol=1e-4, atol=1e-5)
        found = run.hessian_of(f"{LAYER}.mlp.experts.down_proj")(expert)
        np.testing.assert_allclose(found, inputs.inner_hessian(expert, gate, up), rtol=1e-4, atol=1e-5)


def test_each_layer_is_read_once_in_order_and_again_when_gone_back(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    load = calibration.load_float32

    def counted(name: str, source: Checkpoint, *rows: slice) -> NDArray[np.float32]:
        read[name] += not rows  # banks are read expert by expert
        return load(name, source, *rows)

    monkeypatch.setattr(calibration, "load_float32", counted)
    run = Calibration(checkpoint, SEQUENCES)
    names = ["model.layers.0.self_attn.q_a_proj.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    first = [run.hessian_of(name)(0) for name in names]
    assert set(read.values()) <= {0, 1} and sum(read.values()) > 10
    again = [run.hessian_of(name)(0) for name in names]
    assert read["model.layers.0.mlp.up_proj.weight"] == 2
    for one, other in zip(first, again, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_build_goes_through_the_layers_once(tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    load = calibration.load_float32

    def counted(name: str, source: Checkpoint, *rows: slice) -> NDArray[np.float32]:
        read[name] += not rows  # banks are read expert by expert
        return load(name, source, *rows)

    monkeypatch.setattr(calibration, "load_float32", counted)
    config = tiny_config(vocab_size=2048, hidden_size=128, moe_intermediate_size=128)
    path = random_checkpoint(tmp_path / "checkpoint", config, seed=1, tokenizer_from=tiny_bf16)
    (tmp_path / "text.txt").write_text("And it came to pass in the days when the judges ruled. " * 40)
    build_engine(path, tmp_path / "engine", precision="int4", calibration=tmp_path / "text.txt")
    assert set(read.values()) <= {0, 1} and sum(read.values()) > 10


def test_the_mtp_layer_is_not_calibrated(checkpoint: Checkpoint) -> None:
    with pytest.raises(RequestError, match=r"layers\.2\.mlp\.experts\.gate_proj: expected a weight of the trunk"):
        Calibration(checkpoint, SEQUENCES).hessian_of("model.layers.2.mlp.experts.gate_proj")


def test_what_overflows_is_refused(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "checkpoint", tiny_config(), seed=2)
    checkpoint = Checkpoint.open(path)
    huge = checkpoint.float32("model.layers.0.input_layernorm.weight").copy()
    offset = checkpoint.tensors["model.layers.0.input_layernorm.weight"].offset
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(offset)
        file.write((huge * 1e30).astype(np.float32).tobytes())
    run = Calibration(Checkpoint.open(path), SEQUENCES)
    name = "model.layers.0.self_attn.q_a_proj.weight"
    with pytest.raises(CheckpointError, match=f"inputs of {name} on the calibration text: expected finite numbers"):
        run.hessian_of(name)(0)


def test_the_executor_wants_calibration_exactly_where_it_is_used(checkpoint: Checkpoint) -> None:
    choice = {"precision": "fp32", "components": {"dense_mlp": {"format": "int4"}, "head": {"format": "int8"}}}
    calibrated = Recipe.from_json(choice, calibrated=True)
    with pytest.raises(RequestError, match="recipe: dense_mlp by gptq: expected a calibration text, got none"):
        Executor(checkpoint, recipe=calibrated)
    with pytest.raises(RequestError, match="calibration: expected a recipe with an int8 or int4 component by gptq"):
        Executor(checkpoint, calibration_ids=SEQUENCES)
    assert np.isfinite(Executor(checkpoint, recipe=calibrated, calibration_ids=SEQUENCES).logits(SEQUENCES[0])).all()
