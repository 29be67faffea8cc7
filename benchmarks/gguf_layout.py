"""How llama.cpp names, shapes and describes a model of this architecture: its `deepseek2`, with MLA in the latent form.

Facts only, as tables and plain functions: the packages of llama.cpp are not needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsv3export.config import ModelConfig

ARCHITECTURE = "deepseek2"
_GATING = {"softmax": 1, "sigmoid": 2}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ATTENTION = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_FEED_FORWARD = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}

Weights = Callable[[str], NDArray[np.float32]]
"""A tensor of the checkpoint by its name there."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's.
        shape: As numpy has it, i.e. the last dimension is contiguous (GGUF itself counts from that end).
        exact: Whether it stays float32 whatever the others become: norms and all that routes.
        value: Computes it from the checkpoint's tensors.
    """

    name: str
    shape: tuple[int, ...]
    exact: bool
    value: Callable[[Weights], NDArray[np.float32]]


def metadata(config: ModelConfig, name: str) -> dict[str, str | int | float | bool]:
    """The file's key-value pairs but for the file type; the vocabulary has no texts, as only token ids are fed.

    Raises:
        ValueError: llama.cpp would compute something else for this configuration.
    """
    _refuse_what_llama_cpp_lacks(config)
    kv_lora_rank = config.kv_lora_rank
    of_model = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        # in the latent form all heads share one key, the latent and the rotary part side by side
        "attention.head_count_kv": 1,
        "attention.key_length": config.latent_width,
        "attention.value_length": kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.q_lora_rank": config.q_lora_rank or 0,
        "attention.kv_lora_rank": kv_lora_rank,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": float(config.rope_theta),
        **_experts(config),
        **_yarn(config),
    }
    return {
        "general.name": name,
        **{f"{ARCHITECTURE}.{key}": value for key, value in of_model.items()},
        "tokenizer.ggml.model": "no_vocab",
    }


def tensors(config: ModelConfig) -> Iterator[GgufTensor]:
    """All tensors in the order of the file; multi-token prediction is left out."""
    for name, source in _OUTSIDE.items():
        shape = (config.hidden_size,) if "norm" in name else (config.vocab_size, config.hidden_size)
        tied = config.tie_word_embeddings and name == "output.weight"
        yield _as_stored(name, "model.embed_tokens.weight" if tied else source, shape)
    for layer in range(config.num_hidden_layers):
        block, module = f"blk.{layer}.", f"model.layers.{layer}."
        shapes = _attention_shapes(config)
        for name, source in _ATTENTION.items():
            yield _as_stored(block + name, module + source, shapes[name])
        yield from _up_projections(config, block, module + "self_attn.kv_b_proj.weight")
        if config.is_moe_layer(layer):
            yield from _moe(config, block, module + "mlp.")
        else:
            yield from _gated(config.hidden_size, config.intermediate_size, block, "", module + "mlp.")


def _refuse_what_llama_cpp_lacks(config: ModelConfig) -> None:
    scaling = config.rope_scaling
    lacks = {
        "q_lora_rank null": config.q_lora_rank is None,
        "mscale other than mscale_all_dim": scaling is not None and scaling.mscale != scaling.mscale_all_dim,
        "MoE layers between dense ones": config.moe_layer_freq != 1,
    }
    for what, so in lacks.items():
        if so:
            raise ValueError(f"no GGUF file of this model: llama.cpp's {ARCHITECTURE} has no {what}")


def _experts(config: ModelConfig) -> dict[str, int | float | bool]:
    if not config.n_routed_experts:
        return {"leading_dense_block_count": config.num_hidden_layers}
    return {
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": _GATING[config.scoring_func],
    }


def _yarn(config: ModelConfig) -> dict[str, str | int | float]:
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling.factor),
        "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
        "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        # the factor 0.1 of YaRN's mscale is part of what deepseek2 files store
        "rope.scaling.yarn_log_multiplier": 0.1 * scaling.mscale_all_dim,
    }


def _attention_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, heads, q_lora_rank = config.hidden_size, config.num_attention_heads, config.q_lora_rank or 0
    return {
        "attn_norm.weight": (hidden,),
        "attn_q_a.weight": (q_lora_rank, hidden),
        "attn_q_a_norm.weight": (q_lora_rank,),
        "attn_q_b.weight": (heads * config.qk_head_dim, q_lora_rank),
        "attn_kv_a_mqa.weight": (config.latent_width, hidden),
        "attn_kv_a_norm.weight": (config.kv_lora_rank,),
        "attn_output.weight": (hidden, heads * config.v_head_dim),
        "ffn_norm.weight": (hidden,),
    }


def _as_stored(name: str, source: str, shape: tuple[int, ...]) -> GgufTensor:
    return GgufTensor(name, shape, len(shape) == 1, lambda weights: weights(source))


def _up_projections(config: ModelConfig, block: str, source: str) -> Iterator[GgufTensor]:
    """kv_b_proj's two halves by head: w_uk, transposed to go from queries into the latent space, and w_uv."""
    heads, nope, value, rank = (
        config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank
    )  # fmt: skip

    def by_head(weights: Weights) -> NDArray[np.float32]:
        return weights(source).reshape(heads, nope + value, rank)

    yield GgufTensor(
        f"{block}attn_k_b.weight", (heads, rank, nope), False, lambda weights: by_head(weights)[:, :nope].swapaxes(1, 2)
    )
    yield GgufTensor(f"{block}attn_v_b.weight", (heads, value, rank), False, lambda weights: by_head(weights)[:, nope:])


def _gated(hidden: int, inner: int, block: str, suffix: str, module: str) -> Iterator[GgufTensor]:
    for name, source in _FEED_FORWARD.items():
        shape = (hidden, inner) if name == "ffn_down" else (inner, hidden)
        yield _as_stored(f"{block}{name}{suffix}.weight", f"{module}{source}.weight", shape)


def _moe(config: ModelConfig, block: str, module: str) -> Iterator[GgufTensor]:
    hidden, inner, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts or 0
    router = (experts, hidden)
    yield GgufTensor(f"{block}ffn_gate_inp.weight", router, True, lambda weights: weights(f"{module}gate.weight"))
    if config.has_router_bias:
        yield _as_stored(f"{block}exp_probs_b.bias", f"{module}gate.e_score_correction_bias", (experts,))
    for name, source in _FEED_FORWARD.items():
        shape = (experts, hidden, inner) if name == "ffn_down" else (experts, inner, hidden)
        yield GgufTensor(f"{block}{name}_exps.weight", shape, False, _bank(module, source, experts))
    if config.n_shared_experts:
        shared = config.n_shared_experts * inner
        yield from _gated(hidden, shared, block, "_shexp", f"{module}shared_experts.")


def _bank(module: str, source: str, experts: int) -> Callable[[Weights], NDArray[np.float32]]:
    names = [f"{module}experts.{expert}.{source}.weight" for expert in range(experts)]
    return lambda weights: np.stack([weights(name) for name in names])
