"""Each bad config.json gives one error that names the key, the value and what is allowed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.config import ModelConfig
from dsv3export.errors import ConfigError
from tests.support.synthetic import FP8_CONFIG, tiny_config


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
YARN = tiny_config()["rope_scaling"]

# key (dots lead into objects), value, what the message says besides the key
BAD: list[tuple[str, object, str]] = [
    ("model_type", "llama", 'expected "deepseek_v3" or "deepseek_v2", got "llama"'),
    ("model_type", ABSENT, "got no such key"),
    ("model_type", ["deepseek_v3"], "got ["),
    ("model_type", "deepseek_v32", "DeepSeek-V3.2 attends sparsely"),
    ("model_type", "kimi_k2", "Kimi K2 is not tested here"),
    ("model_type", "deepseek_v2", 'architectures: expected ["DeepseekV2ForCausalLM"]'),
    ("architectures", ["LlamaForCausalLM"], 'expected ["DeepseekV3ForCausalLM"]'),
    ("architectures", ["DeepseekV3ForSequenceClassification"], "ForSequenceClassification"),
    ("architectures", "DeepseekV3ForCausalLM", 'got "DeepseekV3ForCausalLM"'),
    ("index_topk", 2048, "sparse attention of DeepSeek-V3.2"),
    ("hidden_act", "gelu", 'expected "silu"'),
    ("attention_bias", True, "expected false"),
    ("mlp_bias", True, "expected false"),
    ("attention_bias", 0, "expected false (projections with a bias are not supported), got 0"),
    ("rope_interleave", False, "expected true"),
    ("vocab_size", ABSENT, "got no such key"),
    ("vocab_size", None, "got null"),
    ("vocab_size", 0, "an integer from 1 to"),
    ("hidden_size", 48.0, "expected an integer from 1 to 1048576, got 48.0"),
    ("hidden_size", "48", 'got "48"'),
    ("hidden_size", True, "got true"),
    ("hidden_size", -48, "got -48"),
    ("hidden_size", 10**30, "got 1000000000000000000000000000000"),
    ("intermediate_size", ABSENT, "got no such key"),
    ("num_hidden_layers", 0, "an integer from 1 to 1000"),
    ("num_hidden_layers", 10**6, "an integer from 1 to 1000"),
    ("num_attention_heads", 0, "got 0"),
    ("num_key_value_heads", 1, "expected num_attention_heads (3)"),
    ("kv_lora_rank", None, "got null"),
    ("q_lora_rank", ABSENT, "expected null or an integer"),
    ("q_lora_rank", 0, "got 0"),
    ("qk_nope_head_dim", ABSENT, "no such key"),
    ("qk_rope_head_dim", 7, "an even integer"),
    ("qk_rope_head_dim", 0, "got 0"),
    ("qk_head_dim", 64, "qk_nope_head_dim + qk_rope_head_dim (20)"),
    ("v_head_dim", [10], "got [10]"),
    ("n_routed_experts", ABSENT, "expected null or an integer"),
    ("n_routed_experts", -1, "got -1"),
    ("n_routed_experts", 10, "n_group: expected a divisor of n_routed_experts (10), got 4"),
    ("n_routed_experts", 4, "n_group: expected at most 2 (noaux_tc"),
    ("n_shared_experts", ABSENT, "no such key"),
    ("n_shared_experts", 1.5, "got 1.5"),
    ("moe_intermediate_size", None, "got null"),
    ("num_experts_per_tok", ABSENT, "no such key"),
    ("num_experts_per_tok", 0, "got 0"),
    ("num_experts_per_tok", 5, "expected at most the 4 of 8 experts in the topk_group groups, got 5"),
    ("n_group", 3, "expected a divisor of n_routed_experts (8), got 3"),
    ("n_group", 8, "expected at most 4"),
    ("n_group", 0, "got 0"),
    ("topk_group", 5, "expected at most n_group (4), got 5"),
    ("topk_group", False, "got false"),
    ("topk_method", "random", '"noaux_tc" or "greedy" or "group_limited_greedy", got "random"'),
    ("topk_method", ["greedy"], 'got ["greedy"]'),
    ("scoring_func", "tanh", 'expected "sigmoid" or "softmax", got "tanh"'),
    ("norm_topk_prob", 1, "expected true or false, got 1"),
    ("norm_topk_prob", "true", 'got "true"'),
    ("routed_scaling_factor", 0, "got 0"),
    ("routed_scaling_factor", math.nan, "got NaN"),
    ("routed_scaling_factor", True, "got true"),
    ("first_k_dense_replace", -1, "got -1"),
    ("moe_layer_freq", 0, "got 0"),
    ("moe_layer_freq", [0, 1], "got [0, 1]"),
    ("num_nextn_predict_layers", 99, "from 0 to 16"),
    ("rms_norm_eps", 0, "got 0"),
    ("rms_norm_eps", "1e-6", 'got "1e-6"'),
    ("rms_norm_eps", math.inf, "got Infinity"),
    ("rope_theta", 1.0, "got 1.0"),
    ("rope_theta", 10**400, "got 1000"),
    ("rope_scaling", "yarn", "expected null or a JSON object"),
    ("rope_scaling.type", "linear", 'expected "default" or "yarn", got "linear"'),
    ("rope_scaling.type", ABSENT, "got no such key"),
    ("rope_scaling.rope_type", "dynamic", 'got "dynamic"'),
    ("rope_scaling.rope_type", "default", 'type: expected the value of rope_type, "default", got "yarn"'),
    ("rope_scaling.factor", ABSENT, "no such key"),
    ("rope_scaling.factor", 0.5, "a number from 1 to"),
    ("rope_scaling.original_max_position_embeddings", ABSENT, "no such key"),
    ("rope_scaling.original_max_position_embeddings", 64.0, "got 64.0"),
    ("rope_scaling.beta_fast", 0.5, "at least beta_slow (1)"),
    ("rope_scaling.beta_slow", -1, "got -1"),
    ("rope_scaling.mscale", math.inf, "got Infinity"),
    ("rope_scaling.mscale_all_dim", "1", 'got "1"'),
    ("rope_scaling.attention_factor", 2.0, "what mscale and mscale_all_dim give, 1"),
    ("rope_scaling.truncate", False, "expected true"),
    ("rope_scaling.partial_rotary_factor", 0.5, "all of qk_rope_head_dim is rotated"),
    ("rope_parameters", {**YARN, "rope_theta": 500}, "rope_theta: expected the value of rope_theta, 10000"),
    ("rope_parameters", {**YARN, "factor": 8}, "rope_scaling: expected the same scaling as in rope_parameters"),
    ("max_position_embeddings", 0, "got 0"),
    ("tie_word_embeddings", "no", 'got "no"'),
    ("bos_token_id", 97, "from 0 to 96, got 97"),
    ("eos_token_id", 97, "a token id below vocab_size (97)"),
    ("eos_token_id", [1, True], "got [1, true]"),
    ("eos_token_id", "1", 'got "1"'),
    ("quantization_config", "fp8", "expected null or a JSON object"),
    ("quantization_config", {**FP8_CONFIG, "quant_method": "gptq"}, 'expected "fp8", got "gptq"'),
    ("quantization_config", {**FP8_CONFIG, "fmt": "e5m2"}, 'expected "e4m3", got "e5m2"'),
    ("quantization_config", {**FP8_CONFIG, "weight_block_size": [64, 128]}, "expected [128, 128], got [64, 128]"),
    ("quantization_config", {**FP8_CONFIG, "weight_block_size": None}, "got null"),
    ("quantization_config", {**FP8_CONFIG, "activation_scheme": "static"}, 'expected "dynamic"'),
    ("quantization_config", {**FP8_CONFIG, "expert_dtype": "fp4"}, 'expected "fp8", got "fp4"'),
    ("quantization_config", {**FP8_CONFIG, "scale_fmt": "bf16"}, 'got "bf16"'),
    ("quantization_config", {}, "quant_method"),
]


def changed(key: str, value: object) -> dict[str, Any]:
    config = copy.deepcopy(tiny_config())
    table = config
    *outer, last = key.split(".")
    for name in outer:
        table = table[name]
    if value is ABSENT:
        table.pop(last, None)
    else:
        table[last] = value
    return config


@pytest.mark.parametrize(("key", "value", "says"), BAD, ids=[f"{key}={value!r:.40}" for key, value, _ in BAD])
def test_bad_values_are_named(key: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(changed(key, value), source="x/config.json")
    message = str(caught.value)
    assert message.startswith("x/config.json: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < 300


def test_v2_code_and_other_programs_disagree_on_normalised_and_scaled_weights() -> None:
    v2 = tiny_config(model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"], norm_topk_prob=True)
    with pytest.raises(ConfigError, match="routed_scaling_factor: expected 1 where a deepseek_v2 model"):
        ModelConfig.from_dict({**v2, "routed_scaling_factor": 16.0})
    assert ModelConfig.from_dict({**v2, "routed_scaling_factor": 1.0}).norm_topk_prob


def test_the_number_of_experts_in_all_layers_is_bounded() -> None:
    huge = tiny_config(num_hidden_layers=1000, n_routed_experts=4096)
    with pytest.raises(ConfigError, match="n_routed_experts: expected at most 262 with 1000 layers"):
        ModelConfig.from_dict(huge)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "expected valid JSON, got Expecting value at line 1 column 1"),
        (b"{", "got Expecting property name"),
        (b'{"a": 1,}', "expected valid JSON"),
        (b"[1, 2]", "expected a JSON object {...}, got a JSON array"),
        (b"null", "got a JSON null"),
        (b'"text"', "got a JSON string"),
        (b"true", "got a JSON boolean"),
        (b"\xff\xfe{\x00}\x00", "expected UTF-8 text, got byte 0xff at offset 0"),
        (b'{"model_type": "\xe9"}', "got byte 0xe9 at offset 16"),
        (b"\xef\xbb\xbf{}", "expected valid JSON"),
        (b'{"rms_norm_eps": NaN}', "got NaN, which is no JSON number"),
        (b'{"a":' * 100_000, "expected valid JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "expected"),
        (b" " * (2**22 + 1), "expected at most 4194304 bytes"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_file(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


def test_a_missing_file_a_folder_and_a_broken_link(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file, got nothing there"):
        ModelConfig.from_file(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="expected a file, got a directory"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "link.json").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="a symbolic link to a file that does not exist"):
        ModelConfig.from_file(tmp_path / "link.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        ModelConfig.from_file(tmp_path / "loop.json")
    with pytest.raises(ConfigError, match="expected a readable file"):
        ModelConfig.from_file("nul\0byte.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*sorted(tiny_config()), "quantization_config", "rope_parameters"]), JSON))
def test_no_value_of_any_key_gives_anything_but_a_config_error(changes: dict[str, Any]) -> None:
    try:
        config = ModelConfig.from_dict(tiny_config(**changes))
    except ConfigError:
        return
    assert 0 < config.softmax_scale < math.inf
    assert config.raw.keys() == tiny_config(**changes).keys()
