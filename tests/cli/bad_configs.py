"""Values in config.json that this program refuses. Each message names the key and the value."""

from __future__ import annotations

YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 256, "mscale": 1.0, "mscale_all_dim": 1.0}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

# (key, value, a part of the value that the message repeats)
BAD_CONFIGS: tuple[tuple[str, object, str], ...] = (
    ("model_type", "llama", "llama"),
    ("model_type", "deepseek_v32", "deepseek_v32"),
    ("hidden_act", "gelu", "gelu"),
    ("attention_bias", True, "true"),
    ("vocab_size", 0, "0"),
    ("hidden_size", -256, "-256"),
    ("hidden_size", "256", "256"),
    ("hidden_size", 256.5, "256.5"),
    ("hidden_size", None, "null"),
    ("hidden_size", 10**30, "1" + "0" * 30),
    ("num_hidden_layers", 10**9, "1000000000"),
    ("num_attention_heads", True, "true"),
    ("num_key_value_heads", 2, "2"),
    ("kv_lora_rank", None, "null"),
    ("qk_rope_head_dim", 31, "31"),
    ("topk_method", "top_p", "top_p"),
    ("scoring_func", "relu", "relu"),
    ("n_group", 3, "3"),
    ("topk_group", 9, "9"),
    ("num_experts_per_tok", 99, "99"),
    ("routed_scaling_factor", "2.5", "2.5"),
    ("norm_topk_prob", "yes", "yes"),
    ("moe_layer_freq", 0, "0"),
    ("rms_norm_eps", 0, "0"),
    ("rope_theta", -1, "-1"),
    ("rope_scaling", {**YARN, "type": "linear"}, "linear"),
    ("rope_scaling", {**YARN, "factor": 0}, "0"),
    ("rope_scaling", "yarn", "yarn"),
    ("quantization_config", {**FP8, "fmt": "e5m2"}, "e5m2"),
    ("quantization_config", {**FP8, "weight_block_size": [64, 64]}, "64"),
    ("quantization_config", {**FP8, "quant_method": "awq"}, "awq"),
    ("max_position_embeddings", 0, "0"),
    ("eos_token_id", 99999, "99999"),
    ("bos_token_id", -1, "-1"),
    ("tie_word_embeddings", 1, "1"),
)
