"""DeepSeek-V2/V3 once more, in float64 numpy: written after DeepSeek's published ``modeling_deepseek.py``.

Shares no code with the product: it reads config.json's keys itself, computes every key and value afresh for the whole
sequence, and knows neither a cache nor chunks. Slow, and only for small models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.plugins import float64_ops

Array = npt.NDArray[Any]
Weights = Callable[[str], Array]


class Float64Model:
    """A model of config.json's JSON object and a function from tensor name to value.

    `margin` is the smallest distance that any router decision so far had from being another one: below float32's
    rounding, a right program may choose other experts.
    """

    def __init__(self, config: Mapping[str, Any], weights: Weights) -> None:
        self.c = {"moe_layer_freq": 1, "q_lora_rank": None, "num_nextn_predict_layers": 0, **config}
        self._weights = weights
        self.margin = math.inf

    def logits(self, ids: Sequence[int]) -> Array:
        """[len(ids), vocab]."""
        return self.final_hidden(ids) @ self._w("lm_head.weight").T

    def final_hidden(self, ids: Sequence[int]) -> Array:
        """After the final norm: [len(ids), hidden]."""
        hidden = self._w("model.embed_tokens.weight")[list(ids)]
        for layer in range(self.c["num_hidden_layers"]):
            hidden = self._layer(hidden, layer)
        return self._norm(hidden, "model.norm.weight")

    def draft_logits(self, ids: Sequence[int]) -> Array:
        """The first MTP layer's guesses for tokens 2, 3, ...: [len(ids) - 1, vocab]."""
        layer = self.c["num_hidden_layers"]
        prefix = f"model.layers.{layer}"
        embedded = self._norm(self._w("model.embed_tokens.weight")[list(ids[1:])], f"{prefix}.enorm.weight")
        previous = self._norm(self.final_hidden(ids[:-1]), f"{prefix}.hnorm.weight")
        joined = np.concatenate([embedded, previous], axis=1) @ self._w(f"{prefix}.eh_proj.weight").T
        hidden = self._norm(self._layer(joined, layer), f"{prefix}.shared_head.norm.weight")
        return hidden @ self._w(f"{prefix}.shared_head.head.weight").T

    def _w(self, name: str) -> Array:
        if name == "lm_head.weight" and self.c.get("tie_word_embeddings"):
            name = "model.embed_tokens.weight"
        return self._weights(name).astype(np.float64)

    def _norm(self, x: Array, name: str, eps: float | None = None) -> Array:
        eps = self.c["rms_norm_eps"] if eps is None else eps
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * self._w(name)

    def _layer(self, hidden: Array, layer: int) -> Array:
        prefix = f"model.layers.{layer}"
        hidden = hidden + self._attention(self._norm(hidden, f"{prefix}.input_layernorm.weight"), f"{prefix}.self_attn")
        normed = self._norm(hidden, f"{prefix}.post_attention_layernorm.weight")
        sparse = layer >= self.c["first_k_dense_replace"] and layer % self.c["moe_layer_freq"] == 0
        sparse = bool(self.c.get("n_routed_experts")) and (sparse or layer >= self.c["num_hidden_layers"])
        return hidden + (self._moe if sparse else self._mlp)(normed, f"{prefix}.mlp")

    def _mlp(self, x: Array, prefix: str) -> Array:
        gate, up = (x @ self._w(f"{prefix}.{name}_proj.weight").T for name in ("gate", "up"))
        return (gate / (1 + np.exp(-gate)) * up) @ self._w(f"{prefix}.down_proj.weight").T

    def _attention(self, x: Array, prefix: str) -> Array:
        c, tokens = self.c, len(x)
        heads, nope, rope, value = (
            c[key] for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        if c["q_lora_rank"] is None:
            query = x @ self._w(f"{prefix}.q_proj.weight").T
        else:
            low = x @ self._w(f"{prefix}.q_a_proj.weight").T
            query = self._norm(low, f"{prefix}.q_a_layernorm.weight", 1e-6) @ self._w(f"{prefix}.q_b_proj.weight").T
        query = query.reshape(tokens, heads, nope + rope)
        both = x @ self._w(f"{prefix}.kv_a_proj_with_mqa.weight").T
        latent = self._norm(both[:, : c["kv_lora_rank"]], f"{prefix}.kv_a_layernorm.weight", 1e-6)
        expanded = (latent @ self._w(f"{prefix}.kv_b_proj.weight").T).reshape(tokens, heads, nope + value)
        key_pe = self._rotated(both[:, None, c["kv_lora_rank"] :])
        query_pe = self._rotated(query[..., nope:])
        scores = np.einsum("shd,thd->hst", query[..., :nope], expanded[..., :nope])
        scores += np.einsum("shd,td->hst", query_pe, key_pe[:, 0])
        scores = scores * self._softmax_scale() + np.triu(np.full((tokens, tokens), -np.inf), 1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hst,thd->shd", shares, expanded[..., nope:])
        return mixed.reshape(tokens, heads * value) @ self._w(f"{prefix}.o_proj.weight").T

    def _softmax_scale(self) -> float:
        scale = float(self.c["qk_nope_head_dim"] + self.c["qk_rope_head_dim"]) ** -0.5
        yarn = self.c.get("rope_scaling")
        if yarn and yarn.get("mscale_all_dim", 0):
            scale *= mscale(yarn["factor"], yarn["mscale_all_dim"]) ** 2
        return scale

    def _rotated(self, x: Array) -> Array:
        """x [tokens, heads, rope]: pairs (2i, 2i+1) turned by position times frequency i."""
        angles = np.arange(len(x))[:, None] * self._frequencies()
        turn = np.exp(1j * angles)[:, None, :]
        yarn = self.c.get("rope_scaling")
        if yarn:
            turn = turn * mscale(yarn["factor"], yarn.get("mscale", 1))
            turn = turn / mscale(yarn["factor"], yarn.get("mscale_all_dim", 0))
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def _frequencies(self) -> Array:
        dim, theta, yarn = self.c["qk_rope_head_dim"], float(self.c["rope_theta"]), self.c.get("rope_scaling")
        plain = theta ** (-np.arange(0, dim, 2) / dim)
        if not yarn:
            return plain
        context = yarn["original_max_position_embeddings"]

        def dim_of(rotations: float) -> float:
            return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(dim_of(yarn.get("beta_fast", 32))), 0)
        high = min(math.ceil(dim_of(yarn.get("beta_slow", 1))), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
        return plain * (1 - ramp) + plain / yarn["factor"] * ramp

    def _moe(self, x: Array, prefix: str) -> Array:
        c = self.c
        logits = x @ self._w(f"{prefix}.gate.weight").T
        noaux = c["topk_method"] == "noaux_tc"
        bias = self._w(f"{prefix}.gate.e_score_correction_bias") if noaux else np.zeros(logits.shape[1])
        grouped = c["topk_method"] != "greedy"
        groups = (c["n_group"], c["topk_group"], 2 if noaux else 1) if grouped else (1, 1, 1)
        routing = (c["num_experts_per_tok"], *groups, c["scoring_func"])
        ids, weights = float64_ops.moe_route(
            logits, bias, *routing, int(c["norm_topk_prob"]), c["routed_scaling_factor"]
        )
        self.margin = min(self.margin, route_margin(logits, bias, *routing))
        banks = [
            np.stack([self._w(f"{prefix}.experts.{e}.{name}_proj.weight") for e in range(logits.shape[1])])
            for name in ("gate", "up", "down")
        ]
        out = float64_ops.moe_experts(x, ids, weights, banks[0], banks[1], banks[2])
        return out + self._mlp(x, f"{prefix}.shared_experts") if c.get("n_shared_experts") else out


def mscale(factor: float, by: float) -> float:
    return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0


def route_margin(
    logits: Array, bias: Array, k: int, n_group: int, topk_group: int, group_top: int, scoring: str
) -> float:
    """The least distance between the last chosen and the first refused, over tokens, for groups and for experts."""
    smallest = math.inf
    for row in logits:
        choice = (1 / (1 + np.exp(-row)) if scoring == "sigmoid" else float64_ops.softmax(row)) + bias
        members = choice.reshape(n_group, -1)
        group_scores = np.sort(members, axis=1)[:, ::-1][:, :group_top].sum(axis=1)
        kept = np.argsort(-group_scores)[:topk_group]
        smallest = min(smallest, _gap(group_scores, topk_group), _gap(members[kept].ravel(), k))
    return smallest


def _gap(scores: Array, count: int) -> float:
    falling = np.sort(scores)[::-1]
    return float(falling[count - 1] - falling[count]) if count < len(falling) else math.inf
