"""Which tensors a checkpoint must have: the official names and shapes, derived from the config."""

from __future__ import annotations

from collections.abc import Iterator

from dsv3export.config import ModelConfig

Shape = tuple[int, ...]


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Logical tensors (no scales), by Hugging Face name, in the order of the model.

    With tied embeddings there is no ``lm_head.weight``: the head is ``model.embed_tokens.weight``. An MTP layer has
    its own copies of the embedding and of the head, as in the official DeepSeek-V3 files.
    """
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config.num_hidden_layers):
        tensors.update(layer_tensors(config, layer))
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (vocab, hidden)
    for layer in config.mtp_layer_ids:
        tensors.update(mtp_tensors(config, layer))
    return tensors


def layer_tensors(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The tensors of decoder layer `layer` (for an MTP layer: of the decoder layer in it)."""
    hidden = config.hidden_size
    parts: list[tuple[str, Shape]] = [("input_layernorm.weight", (hidden,))]
    parts += _attention(config)
    parts.append(("post_attention_layernorm.weight", (hidden,)))
    if config.is_moe_layer(layer):
        parts += _experts(config)
    else:
        parts += _mlp("mlp", hidden, config.intermediate_size)
    return {f"model.layers.{layer}.{name}": shape for name, shape in parts}


def mtp_tensors(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The tensors of the MTP module that is stored as layer `layer`."""
    hidden, vocab = config.hidden_size, config.vocab_size
    prefix = f"model.layers.{layer}"
    return {
        f"{prefix}.embed_tokens.weight": (vocab, hidden),
        f"{prefix}.enorm.weight": (hidden,),
        f"{prefix}.hnorm.weight": (hidden,),
        f"{prefix}.eh_proj.weight": (hidden, 2 * hidden),
        **layer_tensors(config, layer),
        f"{prefix}.shared_head.norm.weight": (hidden,),
        f"{prefix}.shared_head.head.weight": (vocab, hidden),
    }


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to, an MTP module's number included; None outside of layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def may_be_fp8(name: str, shape: Shape) -> bool:
    """Whether the tensor is the weight of a linear layer, which may be stored in FP8 with block scales.

    The embedding is looked up, and the router is computed in float32: neither is ever quantised.
    """
    return len(shape) == 2 and not name.endswith((".embed_tokens.weight", ".mlp.gate.weight"))


def _attention(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    queries = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        yield "self_attn.q_proj.weight", (queries, hidden)
    else:
        yield "self_attn.q_a_proj.weight", (config.q_lora_rank, hidden)
        yield "self_attn.q_a_layernorm.weight", (config.q_lora_rank,)
        yield "self_attn.q_b_proj.weight", (queries, config.q_lora_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (config.latent_width, hidden)
    yield "self_attn.kv_a_layernorm.weight", (latent,)
    yield "self_attn.kv_b_proj.weight", (heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
    yield "self_attn.o_proj.weight", (hidden, heads * config.v_head_dim)


def _experts(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, width = config.hidden_size, config.moe_intermediate_size
    yield "mlp.gate.weight", (config.n_routed_experts, hidden)
    if config.has_router_bias:
        yield "mlp.gate.e_score_correction_bias", (config.n_routed_experts,)
    for expert in range(config.n_routed_experts):
        yield from _mlp(f"mlp.experts.{expert}", hidden, width)
    if config.n_shared_experts:
        yield from _mlp("mlp.shared_experts", hidden, width * config.n_shared_experts)


def _mlp(prefix: str, hidden: int, width: int) -> list[tuple[str, Shape]]:
    return [
        (f"{prefix}.gate_proj.weight", (width, hidden)),
        (f"{prefix}.up_proj.weight", (width, hidden)),
        (f"{prefix}.down_proj.weight", (hidden, width)),
    ]
