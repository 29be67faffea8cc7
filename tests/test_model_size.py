"""Parameter counts, against the published ones and against the tensors of real checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

from dsv3export.checkpoint import Checkpoint, expected_tensors
from dsv3export.config import ModelConfig
from dsv3export.model_size import count_parameters
from dsv3export.presets import preset
from tests.support.synthetic import tiny_config


def test_deepseek_v3_has_671_billion_parameters_of_which_37_are_active() -> None:
    count = count_parameters(preset("deepseek_v3"))
    assert count.total == 671_026_419_200
    assert round(count.active / 1e9, 1) == 36.6
    assert round(count.mtp / 1e9, 1) == 11.6
    assert sum(count.by_component.values()) == count.total
    assert count.by_component["routed_experts"] == 58 * 256 * 3 * 7168 * 2048


def test_deepseek_v2_lite_has_16_billion_parameters_of_which_2_4_are_active() -> None:
    count = count_parameters(preset("deepseek_v2_lite"))
    assert round(count.total / 1e9, 1) == 15.7
    assert round(count.active / 1e9, 2) == 2.45
    assert count.mtp == 0


def test_the_count_is_that_of_the_stored_tensors(tiny_bf16: Path) -> None:
    checkpoint = Checkpoint.open(tiny_bf16)
    copies = ("model.layers.4.embed_tokens.weight", "model.layers.4.shared_head.head.weight")
    stored = sum(math.prod(info.shape) for name, info in checkpoint.tensors.items() if name not in copies)
    count = count_parameters(checkpoint.config)
    assert count.total + count.mtp == stored


def test_a_part_of_the_layers() -> None:
    config = preset("deepseek_v3")
    whole, part = count_parameters(config), count_parameters(config, (3, 4))
    assert part.by_component["routed_experts"] == 2 * 256 * 3 * 7168 * 2048
    assert part.by_component["dense_mlp"] == part.mtp == 0
    assert part.by_component["head"] == whole.by_component["head"]
    assert part.by_component["attention"] * 61 == whole.by_component["attention"] * 2


def test_a_tied_head_counts_once_and_is_active() -> None:
    free = count_parameters(ModelConfig.from_dict(tiny_config()))
    tied = count_parameters(ModelConfig.from_dict(tiny_config(tie_word_embeddings=True)))
    assert tied.total == free.total - 97 * 48
    assert tied.active == free.active
    assert tied.by_component["head"] == 0


def test_a_dense_model_is_all_active_but_its_embedding() -> None:
    config = ModelConfig.from_dict(tiny_config(n_routed_experts=None, q_lora_rank=None))
    count = count_parameters(config)
    assert count.total == sum(math.prod(shape) for shape in expected_tensors(config).values())
    assert count.active == count.total - 97 * 48
