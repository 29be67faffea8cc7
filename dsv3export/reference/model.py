"""The layer kinds and the whole model.

`Embedding`, `DecoderLayer` (dense or MoE), `Head` and `MtpLayer` are the units that the compiler traces once each;
`ReferenceModel` strings them together for eager use.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3export.config import ModelConfig
from dsv3export.reference.attention import MultiHeadLatentAttention
from dsv3export.reference.layers import Linear, RMSNorm
from dsv3export.reference.moe import Mlp, MoE


class Embedding(nn.Module):
    """Token embedding, and the rotary angles of this step's positions, which all layers share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=torch.float32)
        self.embed_tokens.weight.requires_grad_(False)
        self.rotary = Rotary(config)

    def forward(self, input_ids: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids [B, S], start [B] -> hidden [B, S, D], cos, sin [B, S, Dr/2]."""
        cos, sin = self.rotary(input_ids, start)
        return self.embed_tokens(input_ids), cos, sin


class Rotary(nn.Module):
    """cos and sin of position * inverse frequency (YaRN's included), times YaRN's attention factor."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inverse_frequencies = nn.Parameter(torch.empty(config.qk_rope_head_dim // 2), requires_grad=False)
        self.factor = config.rope_attention_factor

    def forward(self, input_ids: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        positions = start.unsqueeze(1) + torch.arange(input_ids.shape[1], device=input_ids.device)
        angles = positions.to(torch.float32).unsqueeze(2) * self.inverse_frequencies
        cos, sin = torch.cos(angles), torch.sin(angles)
        return (cos, sin) if self.factor == 1.0 else (cos * self.factor, sin * self.factor)


class DecoderLayer(nn.Module):
    """Pre-norm residual block of attention and a dense or MoE feed-forward part."""

    def __init__(self, config: ModelConfig, moe: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MultiHeadLatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if moe else Mlp(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, start: Tensor, cos: Tensor, sin: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, S, D] -> hidden, updated cache; see the attention for the other shapes."""
        attended, cache = self.self_attn(self.input_layernorm(hidden), start, cos, sin, cache)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), cache


class Head(nn.Module):
    """Final norm, and logits for the chosen rows only: prefill wants one row of many."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor, logit_rows: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, S, D], logit_rows [R] into the flattened B*S -> logits [R, V], normed hidden [B, S, D]."""
        final_hidden = self.norm(hidden)
        return self.lm_head(final_hidden.flatten(0, 1).index_select(0, logit_rows)), final_hidden


class SharedHead(nn.Module):
    """The MTP layer's own final norm and head; the official file stores a copy of lm_head here."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor, logit_rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `Head`'s."""
        normed = self.norm(hidden)
        return self.head(normed.flatten(0, 1).index_select(0, logit_rows)), normed


class MtpLayer(DecoderLayer):
    """Multi-token prediction (DeepSeek-V3 paper, section 2.2): drafts token i+2 from h_i and token i+1."""

    def __init__(self, config: ModelConfig, moe: bool) -> None:
        super().__init__(config, moe)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def forward(  # type: ignore[override]  # one more input and output than the layer it is built from
        self,
        embedded: Tensor,
        final_hidden: Tensor,
        start: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Tensor,
        logit_rows: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """embedded [B, S, D] of tokens i+1, final_hidden [B, S, D] of tokens i -> draft logits [R, V], hidden, cache.

        ``hidden`` [B, S, D], after this layer's own final norm, takes the place of ``final_hidden`` where the layer
        drafts on from its own draft.
        """
        joined = torch.cat([self.enorm(embedded), self.hnorm(final_hidden)], dim=-1)
        hidden, cache = super().forward(self.eh_proj(joined), start, cos, sin, cache)
        logits, draft_hidden = self.shared_head(hidden, logit_rows)
        return logits, draft_hidden, cache


class ReferenceModel(nn.Module):
    """The trunk and the MTP layers, eager; `load_reference` makes one from a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(
            DecoderLayer(config, config.is_moe_layer(i)) for i in range(config.num_hidden_layers)
        )
        self.head = Head(config)
        self.mtp = nn.ModuleList(MtpLayer(config, bool(config.n_routed_experts)) for _ in config.mtp_layer_ids)

    def new_caches(self, slots: int, capacity: int) -> list[Tensor]:
        """One zeroed [slots, capacity, Dc+Dr] float32 tensor per trunk layer."""
        shape = (slots, capacity, self.config.latent_width)
        return [torch.zeros(shape) for _ in self.layers]

    def forward(
        self, input_ids: Tensor, start: Tensor, caches: list[Tensor], logit_rows: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One step: logits [R, V], final hidden [B, S, D] (after the norm), the updated caches."""
        hidden, cos, sin = self.embedding(input_ids, start)
        updated = []
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden, new_cache = layer(hidden, start, cos, sin, cache)
            updated.append(new_cache)
        logits, final_hidden = self.head(hidden, logit_rows)
        return logits, final_hidden, updated
