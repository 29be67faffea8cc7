"""What llama.cpp is told about a model, and where its tensors come from; no package of llama.cpp is needed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gguf_layout import GgufTensor, metadata, tensors
from benchmarks.presets import PRESETS
from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.model_size import count_parameters


def config_of(folder: Path, **changes: Any) -> ModelConfig:
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ModelConfig.from_dict({**raw, **changes})


@pytest.fixture(scope="module")
def checkpoint(tiny_bf16: Path) -> Checkpoint:
    return Checkpoint.open(tiny_bf16)


@pytest.fixture(scope="module")
def by_name(checkpoint: Checkpoint) -> dict[str, GgufTensor]:
    return {tensor.name: tensor for tensor in tensors(checkpoint.config)}


def test_attention_is_described_in_its_latent_form(tiny_bf16: Path) -> None:
    found = metadata(config_of(tiny_bf16), "tiny")
    attention = {key.split(".")[-1]: value for key, value in found.items() if ".attention." in key}
    assert attention == {
        "head_count": 4, "head_count_kv": 1, "key_length": 128 + 32, "value_length": 128, "key_length_mla": 64 + 32,
        "value_length_mla": 64, "q_lora_rank": 128, "kv_lora_rank": 128, "layer_norm_rms_epsilon": 1e-6,
    }  # fmt: skip


def test_routing_and_yarn_are_described(tiny_bf16: Path) -> None:
    found = metadata(config_of(tiny_bf16), "tiny")
    assert {key.split("deepseek2.expert_")[1]: value for key, value in found.items() if ".expert_" in key} == {
        "count": 16, "used_count": 4, "shared_count": 1, "feed_forward_length": 128, "group_count": 4,
        "group_used_count": 2, "weights_scale": 2.5, "weights_norm": True, "gating_func": 2,
    }  # fmt: skip
    assert {key.split("rope.scaling.")[1]: value for key, value in found.items() if ".scaling." in key} == {
        "type": "yarn", "factor": 4.0, "original_context_length": 256, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
        "yarn_log_multiplier": 0.1,
    }  # fmt: skip


def test_a_model_without_yarn_has_none_of_its_keys(tiny_bf16: Path) -> None:
    assert not [key for key in metadata(config_of(tiny_bf16, rope_scaling=None), "tiny") if "scaling" in key]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"q_lora_rank": None}, "q_lora_rank null"),
        ({"moe_layer_freq": 2}, "MoE layers between dense ones"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tiny_bf16: Path, changes: dict[str, Any], missing: str
) -> None:
    with pytest.raises(ValueError, match=missing):
        metadata(config_of(tiny_bf16, **changes), "tiny")


def test_another_mscale_is_refused(tiny_bf16: Path) -> None:
    scaling = {**config_of(tiny_bf16).raw["rope_scaling"], "mscale": 0.7}
    with pytest.raises(ValueError, match="mscale other than mscale_all_dim"):
        metadata(config_of(tiny_bf16, rope_scaling=scaling), "tiny")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_is_in_the_file_once(preset: str) -> None:
    config = ModelConfig.from_dict(dict(PRESETS[preset]))
    found = list(tensors(config))
    assert len({tensor.name for tensor in found}) == len(found)
    assert sum(int(np.prod(tensor.shape)) for tensor in found) == count_parameters(config).total


def test_shapes_are_those_of_the_values(checkpoint: Checkpoint, by_name: dict[str, GgufTensor]) -> None:
    assert {name: tensor.value(checkpoint.float32).shape for name, tensor in by_name.items()} == {
        name: tensor.shape for name, tensor in by_name.items()
    }


def test_the_up_projections_compute_what_kv_b_proj_does(checkpoint: Checkpoint, by_name: dict[str, GgufTensor]) -> None:
    config = checkpoint.config
    rng = np.random.default_rng(0)
    latent = rng.standard_normal(config.kv_lora_rank).astype(np.float32)
    query = rng.standard_normal((config.num_attention_heads, config.qk_nope_head_dim)).astype(np.float32)
    projected = checkpoint.float32("model.layers.2.self_attn.kv_b_proj.weight") @ latent
    keys, values = np.split(projected.reshape(config.num_attention_heads, -1), [config.qk_nope_head_dim], axis=1)
    w_uk, w_uv = (by_name[f"blk.2.attn_{part}_b.weight"].value(checkpoint.float32) for part in "kv")
    absorbed = np.einsum("hrn,hn->hr", w_uk, query)
    np.testing.assert_allclose(absorbed @ latent, (query * keys).sum(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(w_uv @ latent, values, rtol=1e-4, atol=1e-4)


def test_banks_hold_the_experts_in_order(checkpoint: Checkpoint, by_name: dict[str, GgufTensor]) -> None:
    bank = by_name["blk.1.ffn_down_exps.weight"].value(checkpoint.float32)
    for expert in (0, 7, 15):
        expected = checkpoint.float32(f"model.layers.1.mlp.experts.{expert}.down_proj.weight")
        assert np.array_equal(bank[expert], expected)


def test_norms_and_routers_stay_exact(by_name: dict[str, GgufTensor]) -> None:
    exact = {name.split(".", 2)[-1] for name, tensor in by_name.items() if tensor.exact}
    assert exact == {
        "weight", "attn_norm.weight", "attn_q_a_norm.weight", "attn_kv_a_norm.weight", "ffn_norm.weight",
        "ffn_gate_inp.weight", "exp_probs_b.bias",
    }  # fmt: skip
