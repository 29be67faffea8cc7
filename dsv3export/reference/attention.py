"""Multi-head latent attention (DeepSeek-V2 paper, section 2.1; DeepSeek-V3, section 2.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3export.config import ModelConfig
from dsv3export.plugins.latent_append.op import latent_append
from dsv3export.plugins.mla_attention.op import mla_attention
from dsv3export.reference.layers import Linear, RMSNorm

# The official code builds these two norms with its default epsilon, whatever config.json's rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotate interleaved pairs: (x[2i], x[2i+1]) by the angle of frequency i.

    Args:
        x: [B, S, heads*Dr].
        cos, sin: [B, S, Dr/2].
    """
    rotated: Tensor = torch.onnx.ops.rotary_embedding(x, cos, sin, interleaved=True, num_heads=heads)
    return rotated


class MultiHeadLatentAttention(nn.Module):
    """Queries through a low rank (or not: q_lora_rank null), K/V through the cached latent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.kv_lora_rank = config.kv_lora_rank
        self.scale = config.softmax_scale
        q_width = self.heads * config.qk_head_dim
        self.q_lora_rank = config.q_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, q_width)
        else:
            self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, q_width)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.latent_width)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, self.heads * (self.nope + config.v_head_dim))
        self.o_proj = Linear(self.heads * config.v_head_dim, config.hidden_size)

    def _query(self, x: Tensor) -> Tensor:
        if self.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    def forward(self, x: Tensor, start: Tensor, cos: Tensor, sin: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, D], start [B], cos/sin [B, S, Dr/2], cache [B, T, Dc+Dr] -> out [B, S, D], updated cache."""
        q_nope, q_pe = self._query(x).unflatten(-1, (self.heads, -1)).split([self.nope, self.rope], dim=-1)
        q_pe = rotate(q_pe.flatten(-2), cos, sin, self.heads).unflatten(-1, (self.heads, -1))
        kv_c, k_pe = self.kv_a_proj_with_mqa(x).split([self.kv_lora_rank, self.rope], dim=-1)
        cache = latent_append(cache, self.kv_a_layernorm(kv_c), rotate(k_pe, cos, sin, 1), start)
        out = mla_attention(q_nope, q_pe, cache, self.kv_b_proj.weight, start, self.scale)
        return self.o_proj(out), cache
