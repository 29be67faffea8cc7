"""Random configs of the architecture's family, and transformers as the oracle for those that it gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.e2e.goldens import Array
from tests.support.synthetic import tiny_config

V3_ROUTING: dict[str, Any] = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
V2: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
}


@st.composite
def _sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Dimensions of all parts: odd ones, equal ones, one head, and values wider or narrower than keys."""
    heads = draw(st.sampled_from([1, 2, 3, 5]))
    layers = draw(st.integers(1, 3))
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        # transformers refuses a V2 config whose hidden size is no multiple of the heads.
        "hidden_size": heads * draw(st.integers(6, 12)),
        "qk_nope_head_dim": draw(st.integers(1, 17)),
        "qk_rope_head_dim": 2 * draw(st.integers(1, 6)),
        "v_head_dim": draw(st.integers(1, 17)),
        "kv_lora_rank": draw(st.integers(5, 33)),
        "q_lora_rank": draw(st.none() | st.integers(5, 33)),
        "intermediate_size": draw(st.integers(3, 40)),
        "moe_intermediate_size": draw(st.integers(3, 20)),
        "vocab_size": draw(st.integers(20, 150)),
        "num_hidden_layers": layers,
        "first_k_dense_replace": draw(st.integers(0, layers)),
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
    }


@st.composite
def _rope(draw: st.DrawFn, any_mscale: bool) -> dict[str, Any]:
    """YaRN or not. transformers takes mscale for 1 where one of the two is 0, the published code does not."""
    theta = draw(st.sampled_from([10000, 10000.0, 50000, 100]))
    if draw(st.booleans()):
        return {"rope_theta": theta, "rope_scaling": None}
    mscales = [(1.0, 1.0), (0.707, 0.707), (0.5, 1.5), (1.0, 0.0)] + [(0.3, 0.0), (0.0, 1.0)] * any_mscale
    mscale, mscale_all_dim = draw(st.sampled_from(mscales))
    scaling = {
        "type": "yarn",
        "factor": draw(st.sampled_from([1.0, 2, 40, 7.5])),
        "original_max_position_embeddings": draw(st.sampled_from([8, 64, 4096])),
        "beta_fast": draw(st.sampled_from([32, 8])),
        "beta_slow": 1,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    }
    return {"rope_theta": theta, "rope_scaling": scaling}


@st.composite
def _experts(draw: st.DrawFn, grouped: bool = True) -> dict[str, Any]:
    n_group = draw(st.integers(1, 4)) if grouped else 1
    size = draw(st.integers(2, 5))
    topk_group = draw(st.integers(1, n_group))
    return {
        "n_routed_experts": n_group * size,
        "n_group": n_group,
        "topk_group": topk_group,
        "num_experts_per_tok": draw(st.integers(1, topk_group * size)),
        "n_shared_experts": draw(st.integers(1, 3)),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
    }


@st.composite
def v3_configs(draw: st.DrawFn) -> dict[str, Any]:
    """DeepSeek-V3 configs that transformers computes as the published code does."""
    norm = {"norm_topk_prob": draw(st.booleans())}
    return tiny_config(**draw(_sizes()), **draw(_rope(any_mscale=False)), **draw(_experts()), **V3_ROUTING, **norm)


@st.composite
def v2_configs(draw: st.DrawFn) -> dict[str, Any]:
    """DeepSeek-V2 configs that transformers computes as the published code does.

    It ignores norm_topk_prob, and its rotation fails where pairs start at odd offsets.
    """
    method = draw(st.sampled_from(["greedy", "group_limited_greedy"]))
    experts = draw(_experts(grouped=method == "group_limited_greedy"))
    routing = {"topk_method": method, "norm_topk_prob": False}
    sizes = draw(_sizes())
    even = {key: sizes[key] // 2 * 2 + 2 for key in ("qk_nope_head_dim", "kv_lora_rank")}
    return tiny_config(**{**sizes, **even}, **draw(_rope(any_mscale=False)), **experts, **routing, **V2)


@st.composite
def unusual_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Combinations that transformers cannot express, or computes otherwise than the published code."""
    values = tiny_config(**draw(_sizes()), **draw(_rope(any_mscale=True)), **draw(_experts()))
    return values | {
        "scoring_func": draw(st.sampled_from(["sigmoid", "softmax"])),
        "topk_method": draw(st.sampled_from(["noaux_tc", "greedy", "group_limited_greedy"])),
        "norm_topk_prob": draw(st.booleans()),
        "n_shared_experts": draw(st.sampled_from([None, 0, 1, 2])),
        "moe_layer_freq": draw(st.sampled_from([1, 2])),
        "num_nextn_predict_layers": draw(st.sampled_from([0, 1])),
    }


def token_ids(config: Mapping[str, Any], count: int = 21) -> list[int]:
    """Ids that depend on the vocabulary only, the first and the last token of it included."""
    size = config["vocab_size"]
    ids: list[int] = np.random.default_rng(size).integers(0, size, count).tolist()
    return [0, size - 1, *ids[2:]]


def transformers_logits(path: Path, ids: Sequence[int]) -> Array:
    """What transformers makes of an F32 checkpoint: eager attention and experts, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", local_files_only=True
    )
    with torch.inference_mode():
        logits: Array = model(torch.tensor([list(ids)])).logits[0].numpy()
    return logits
