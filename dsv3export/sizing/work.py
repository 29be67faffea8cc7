"""What a decode step and a prefill read from memory and compute, as sums of terms.

Nothing is read twice and nothing computed that the model's formulas do not ask for, so that a time from these sums is a
floor, not an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsv3export.config import ModelConfig
from dsv3export.model_size import count_parameters
from dsv3export.recipe import CacheFormat
from dsv3export.runtime.latent_cache import CacheLayout
from dsv3export.sizing.term import Term

# How many tokens of a prompt are in flight at once.
CHUNK = 512
_ACTIVATION_BYTES = 2
_LOGIT_BYTES = 4


def step_bytes(config: ModelConfig, weights: Sequence[Term], tokens: int, cache: Term) -> list[Term]:
    """Bytes that one pass of `tokens` tokens reads: each weight once, of the experts those that some token is sent to.

    A token is taken to be sent to k of the E experts at random, which is what balanced training aims at; then
    E * (1 - (1 - k/E)^tokens) of them are expected to be needed. Of the embedding only rows are read: not counted.
    """
    sizes = {term.name: term.value for term in weights}
    experts = sizes.pop("routed_experts", 0)
    sizes.pop("embedding", None)
    others = sum(sizes.values())
    terms = [Term("weights for every token", others, " + ".join(f"{name} {size:,}" for name, size in sizes.items()))]
    if experts:
        chosen, count = config.num_experts_per_tok, config.n_routed_experts
        share = 1 - (1 - chosen / count) ** tokens
        formula = f"{experts:,} x (1 - (1 - {chosen}/{count})^{tokens:,}) = {share:.1%} of them"
        terms.append(Term("routed experts", round(experts * share), formula))
    return [*terms, cache]


def cache_term(config: ModelConfig, sequences: int, tokens: int, format: CacheFormat) -> Term:
    """Bytes of the latent cache: Dc + Dr numbers per token and layer, and the scales of an fp8 one."""
    layers, per_token = config.num_hidden_layers, CacheLayout.of(format, config).bytes_per_token
    formula = f"{sequences:,} x {tokens:,} tokens x {layers} layers x {per_token // layers:,} bytes"
    return Term("latent cache", sequences * tokens * per_token, formula)


def decode_flops(config: ModelConfig, batch: int, context: int) -> list[Term]:
    """Operations of one decode step: a token for each of `batch` sequences that have `context` tokens.

    The absorbed form of MLA (DeepSeek-V2, section 2.1.2, "absorbed into"): a head multiplies a query of Dc + Dr with
    each cached row, and mixes Dc of each.
    """
    active = count_parameters(config).active
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    per_pair = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    return [
        Term("matrices", 2 * active * batch, f"2 x {active:,} active parameters x {batch:,} tokens"),
        Term(
            "attention",
            2 * batch * layers * heads * context * per_pair,
            f"2 x {batch:,} tokens x {layers} layers x {heads} heads x {context:,} rows x {per_pair}",
        ),
    ]


def prefill_flops(config: ModelConfig, batch: int, prompt: int) -> list[Term]:
    """Operations of the prefill of `batch` prompts: decompressed, causal; the head for the last token of each only."""
    count = count_parameters(config)
    head = config.vocab_size * config.hidden_size
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    pairs, per_pair = prompt * (prompt + 1) // 2, config.qk_head_dim + config.v_head_dim
    body, tokens = count.active - head, batch * prompt
    return [
        Term("matrices", 2 * body * tokens, f"2 x {body:,} active parameters without the head x {tokens:,} tokens"),
        Term("head", 2 * head * batch, f"2 x {head:,} x {batch:,} tokens"),
        Term(
            "attention",
            2 * batch * layers * heads * pairs * per_pair,
            f"2 x {batch:,} prompts x {layers} layers x {heads} heads x {pairs:,} pairs x {per_pair}",
        ),
    ]


def activation_terms(config: ModelConfig, batch: int, context: int) -> list[Term]:
    """Bytes that one layer's largest intermediates take, in 16 bits, scores kept on chip; logits in float32."""
    tokens = max(batch, min(context, CHUNK))
    heads, hidden = config.num_attention_heads, config.hidden_size
    per_token: Mapping[str, int] = {
        "residual stream": 2 * hidden,
        "queries and heads' outputs": heads * (config.qk_head_dim + config.v_head_dim),
        "feed-forward": 2 * max(config.intermediate_size, config.num_experts_per_tok * config.moe_intermediate_size),
    }
    terms = [
        Term(name, tokens * width * _ACTIVATION_BYTES, f"{tokens:,} tokens x {width:,} x {_ACTIVATION_BYTES} bytes")
        for name, width in per_token.items()
    ]
    width = heads * (config.qk_nope_head_dim + config.v_head_dim)
    terms.append(
        Term(
            "decompressed keys and values",
            context * width * _ACTIVATION_BYTES,
            f"1 sequence x {context:,} tokens x {width:,} x {_ACTIVATION_BYTES} bytes",
        )
    )
    vocab = config.vocab_size
    terms.append(Term("logits", batch * vocab * _LOGIT_BYTES, f"{batch:,} tokens x {vocab:,} x {_LOGIT_BYTES} bytes"))
    return terms
