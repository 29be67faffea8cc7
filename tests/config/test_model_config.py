"""`ModelConfig`: published configs, defaults, both spellings of the rotary settings, what follows from the keys."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dsv3export.config import Fp8Quantization, ModelConfig, RopeScaling
from dsv3export.errors import ConfigError
from dsv3export.presets import NAMES, preset
from tests.support.synthetic import FP8_CONFIG, tiny_config


def test_the_shipped_fixture(tiny_fp8: Path) -> None:
    config = ModelConfig.from_file(tiny_fp8 / "config.json")
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (2048, 256, 4)
    assert (config.qk_head_dim, config.latent_width) == (96, 160)
    assert (config.n_routed_experts, config.n_group, config.topk_group, config.num_experts_per_tok) == (16, 4, 2, 4)
    assert [config.layer_kind(layer) for layer in range(4)] == ["dense_layer"] + 3 * ["moe_layer"]
    assert config.mtp_layer_ids == range(4, 5)
    assert config.is_moe_layer(4)
    assert config.quantization == Fp8Quantization(block=(128, 128))
    assert config.rope_scaling == RopeScaling(4.0, 256, 32.0, 1.0, 1.0, 1.0)
    assert config.eos_token_ids == (1,)
    assert config.raw == json.loads((tiny_fp8 / "config.json").read_text())
    assert config.raw["aux_loss_alpha"] == 0.001


def test_deepseek_v3() -> None:
    config = preset("deepseek_v3")
    assert (config.qk_head_dim, config.latent_width) == (192, 576)
    # The value that DeepSeek's own inference code computes: 192^-0.5 * (0.1 * ln 40 + 1)^2.
    assert config.softmax_scale == pytest.approx(0.1352337788608801, rel=1e-12)
    assert config.rope_attention_factor == 1.0
    assert sum(config.is_moe_layer(layer) for layer in range(61)) == 58
    assert config.has_router_bias


def test_deepseek_v2_lite() -> None:
    config = preset("deepseek_v2_lite")
    assert config.q_lora_rank is None
    assert (config.topk_method, config.scoring_func, config.norm_topk_prob) == ("greedy", "softmax", False)
    assert (config.n_shared_experts, config.n_group, config.eos_token_ids) == (2, 1, (100001,))
    assert config.softmax_scale == pytest.approx(192**-0.5 * (0.0707 * math.log(40) + 1) ** 2, rel=1e-12)
    assert config.mtp_layer_ids == range(27, 27)
    assert not config.has_router_bias


def test_presets_are_found_by_name() -> None:
    assert NAMES == ("deepseek_v2_lite", "deepseek_v3")
    with pytest.raises(ConfigError, match="expected one of deepseek_v2_lite, deepseek_v3"):
        preset("deepseek_v4")


def test_absent_keys_get_the_defaults_of_the_model_type() -> None:
    keys = ["topk_method", "scoring_func", "norm_topk_prob", "routed_scaling_factor", "first_k_dense_replace"]
    keys += ["n_group", "topk_group", "num_nextn_predict_layers", "rope_theta", "rope_scaling", "moe_layer_freq"]
    keys += ["bos_token_id", "eos_token_id", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps"]
    keys += ["architectures", "hidden_act", "num_key_value_heads", "attention_bias"]
    sparse = {key: value for key, value in tiny_config(n_routed_experts=16).items() if key not in keys}
    v3 = ModelConfig.from_dict(sparse)
    assert (v3.topk_method, v3.scoring_func, v3.norm_topk_prob) == ("noaux_tc", "sigmoid", True)
    assert (v3.n_group, v3.topk_group, v3.routed_scaling_factor, v3.first_k_dense_replace) == (8, 4, 2.5, 3)
    assert (v3.bos_token_id, v3.eos_token_ids, v3.max_position_embeddings) == (0, (1,), 4096)
    assert (v3.rope_theta, v3.rope_scaling, v3.num_nextn_predict_layers) == (10000.0, None, 0)
    v2 = ModelConfig.from_dict({**sparse, "model_type": "deepseek_v2"})
    assert (v2.topk_method, v2.scoring_func, v2.norm_topk_prob) == ("greedy", "softmax", False)
    assert (v2.n_group, v2.topk_group, v2.routed_scaling_factor, v2.first_k_dense_replace) == (1, 1, 1.0, 0)
    assert (v2.bos_token_id, v2.eos_token_ids, v2.max_position_embeddings) == (None, (), 2048)


def test_transformers_5_spells_the_rotary_settings_otherwise() -> None:
    old = tiny_config(rope_theta=50000)
    scaling = {key: value for key, value in old["rope_scaling"].items() if key != "type"}
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**scaling, "rope_type": "yarn", "type": "yarn", "rope_theta": 50000.0}
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(old)
    assert ModelConfig.from_dict({**old, "rope_parameters": new["rope_parameters"]}) == ModelConfig.from_dict(old)
    plain = {**new, "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
    assert ModelConfig.from_dict(plain) == ModelConfig.from_dict({**old, "rope_scaling": None})
    assert ModelConfig.from_dict(plain).softmax_scale == 20**-0.5


def test_yarn_mscale_moves_to_cos_and_sin_where_mscale_all_dim_differs() -> None:
    scaling = {**tiny_config()["rope_scaling"], "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707}
    config = ModelConfig.from_dict(tiny_config(rope_scaling=scaling))
    above, below = 0.1 * math.log(40) + 1, 0.0707 * math.log(40) + 1
    assert config.rope_attention_factor == pytest.approx(above / below)
    assert config.softmax_scale == pytest.approx(20**-0.5 * below**2)
    del scaling["mscale_all_dim"]
    config = ModelConfig.from_dict(tiny_config(rope_scaling=scaling))
    assert config.rope_attention_factor == pytest.approx(above)
    assert config.softmax_scale == pytest.approx(20**-0.5)


def test_a_factor_of_one_scales_nothing() -> None:
    config = ModelConfig.from_dict(tiny_config(rope_scaling={**tiny_config()["rope_scaling"], "factor": 1}))
    assert (config.softmax_scale, config.rope_attention_factor) == (20**-0.5, 1.0)


def test_layers_with_experts_can_be_every_second() -> None:
    config = ModelConfig.from_dict(
        tiny_config(num_hidden_layers=7, first_k_dense_replace=3, moe_layer_freq=2, num_nextn_predict_layers=2)
    )
    assert [layer for layer in range(9) if config.is_moe_layer(layer)] == [4, 6, 7, 8]
    assert config.mtp_layer_ids == range(7, 9)


@pytest.mark.parametrize("experts", [0, None])
def test_a_dense_model(experts: int | None) -> None:
    config = ModelConfig.from_dict(tiny_config(n_routed_experts=experts, num_nextn_predict_layers=1))
    assert not any(config.is_moe_layer(layer) for layer in range(3))
    assert (config.n_routed_experts, config.n_shared_experts, config.num_experts_per_tok) == (0, 0, 0)
    assert not config.has_router_bias


def test_values_that_other_programs_write_are_understood() -> None:
    config = ModelConfig.from_dict(
        tiny_config(
            n_shared_experts=None,
            eos_token_id=[1, 5],
            bos_token_id=None,
            rope_interleave=True,
            head_dim=8,
            qk_head_dim=20,
            quantization_config={**FP8_CONFIG, "scale_fmt": "ue8m0", "modules_to_not_convert": ["lm_head"]},
            some_future_key={"any": "thing"},
        )
    )
    assert (config.n_shared_experts, config.eos_token_ids, config.bos_token_id) == (0, (1, 5), None)
    assert config.quantization == Fp8Quantization(scale_fmt="ue8m0")
    assert config.raw["some_future_key"] == {"any": "thing"}


def test_greedy_selection_ignores_groups() -> None:
    config = ModelConfig.from_dict(tiny_config(topk_method="greedy", n_group=3, topk_group=7, num_experts_per_tok=8))
    assert (config.n_group, config.topk_group) == (1, 1)


def test_configs_are_values() -> None:
    values = tiny_config()
    config = ModelConfig.from_dict(values)
    assert hash(config) == hash(ModelConfig.from_dict({**values, "comment": "unknown keys do not matter"}))
    values["rope_scaling"]["factor"] = 99
    assert config.raw["rope_scaling"]["factor"] == 4
