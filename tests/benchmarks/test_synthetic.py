"""The synthetic checkpoints are valid, reproducible and of the sizes that they are named after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.presets import PRESETS
from benchmarks.synthetic import write_checkpoint
from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.model_size import count_parameters


@pytest.mark.parametrize(("preset", "total", "active"), [("0.5b", 501e6, 160e6), ("2b", 1.92e9, 0.367e9)])
def test_presets_have_the_sizes_that_the_readme_names(preset: str, total: float, active: float) -> None:
    size = count_parameters(ModelConfig.from_dict(dict(PRESETS[preset])))
    assert size.total == pytest.approx(total, rel=0.01)
    assert size.active == pytest.approx(active, rel=0.02)


def test_a_checkpoint_is_bf16_with_a_shard_for_each_layer(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", PRESETS["smoke"]))
    layers = checkpoint.config.num_hidden_layers
    assert len(checkpoint.shards) == layers + 1
    assert {
        checkpoint.shard_of(f"model.layers.1.{part}") for part in ("mlp.gate.weight", "input_layernorm.weight")
    } == {"model-00002-of-000003.safetensors"}
    stored = {info.dtype for name, info in checkpoint.tensors.items() if not name.endswith("correction_bias")}
    assert stored == {"BF16"}


def test_tensors_depend_on_the_seed_only(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / str(n), PRESETS["smoke"], seed) for n, seed in enumerate((7, 7, 8))]
    first, again, other = (Checkpoint.open(folder) for folder in folders)
    for name in first.tensors:
        assert np.array_equal(first.array(name), again.array(name))
        assert not np.array_equal(first.array(name), other.array(name))


def test_matrices_keep_the_size_of_activations(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", PRESETS["smoke"]))
    ones = np.random.default_rng(0).standard_normal(checkpoint.config.hidden_size).astype(np.float32)
    for name in ("model.layers.0.self_attn.q_a_proj.weight", "model.layers.1.mlp.experts.0.up_proj.weight"):
        assert np.std(checkpoint.float32(name) @ ones) == pytest.approx(1.0, abs=0.25)
