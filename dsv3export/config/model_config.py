"""`ModelConfig`: what config.json says about a model of the DeepSeek-V3 architecture."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsv3export.config.architectures import Family, read_family
from dsv3export.config.fields import Fields
from dsv3export.config.json_file import read_json_object
from dsv3export.config.quantization import Fp8Quantization, read_quantization
from dsv3export.config.rope_scaling import RopeScaling, read_rope
from dsv3export.config.routing import ScoringFunc, TopkMethod, read_routing
from dsv3export.errors import ConfigError

LayerKind = Literal["dense_layer", "moe_layer"]

# Bounds far above any real model: a lying file must not make the program allocate or loop without end.
_MAX_DIM = 2**20
_MAX_VOCAB = 2**24
_MAX_HEADS = 4096
_MAX_LAYERS = 1000
_MAX_MTP_LAYERS = 16
_MAX_POSITIONS = 2**31 - 1
MAX_CONFIG_BYTES = 2**22
_MAX_EXPERTS_IN_ALL = 2**18


@dataclass(frozen=True)
class ModelConfig:
    """The keys of config.json, checked, under Hugging Face's names, and what follows from them.

    A dense model (``n_routed_experts`` 0 or null in the file) has 0 in every mixture-of-experts size. Greedy selection
    ignores groups, so `n_group` and `topk_group` are then 1 whatever the file says.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    topk_method: TopkMethod
    scoring_func: ScoringFunc
    norm_topk_prob: bool
    routed_scaling_factor: float
    first_k_dense_replace: int
    moe_layer_freq: int
    num_nextn_predict_layers: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    quantization: Fp8Quantization | None
    raw: dict[str, Any] = field(compare=False, repr=False)
    """The JSON object as read, unknown keys included."""

    @classmethod
    def from_file(cls, path: Path | str) -> ModelConfig:
        """Reads a config.json.

        Raises:
            ConfigError: The file cannot be read as a JSON object, or describes no model that we build.
        """
        return cls.from_dict(read_json_object(Path(path), ConfigError, max_bytes=MAX_CONFIG_BYTES), source=str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Checks the JSON object `values`; `source` names it in messages.

        Raises:
            ConfigError: A key is missing or has a value that is not allowed; the message names key, value and rule.
        """
        fields = Fields(values, source)
        family = read_family(fields)
        rope_theta, rope_scaling = read_rope(fields)
        vocab_size = fields.integer("vocab_size", 1, _MAX_VOCAB)
        config = cls(
            **vars(read_routing(fields, family)),
            model_type=family.model_type,
            vocab_size=vocab_size,
            hidden_size=fields.integer("hidden_size", 1, _MAX_DIM),
            intermediate_size=fields.integer("intermediate_size", 1, _MAX_DIM),
            num_hidden_layers=fields.integer("num_hidden_layers", 1, _MAX_LAYERS),
            num_attention_heads=fields.integer("num_attention_heads", 1, _MAX_HEADS),
            kv_lora_rank=fields.integer("kv_lora_rank", 1, _MAX_DIM),
            q_lora_rank=fields.nullable_integer("q_lora_rank", 1, _MAX_DIM),
            qk_nope_head_dim=fields.integer("qk_nope_head_dim", 1, _MAX_DIM),
            qk_rope_head_dim=fields.integer("qk_rope_head_dim", 2, _MAX_DIM),
            v_head_dim=fields.integer("v_head_dim", 1, _MAX_DIM),
            first_k_dense_replace=fields.integer(
                "first_k_dense_replace", 0, _MAX_LAYERS, default=family.first_k_dense_replace
            ),
            moe_layer_freq=fields.integer("moe_layer_freq", 1, _MAX_LAYERS, default=1),
            # A file without this key comes from a program that knows no MTP and writes no such layers.
            num_nextn_predict_layers=fields.integer("num_nextn_predict_layers", 0, _MAX_MTP_LAYERS, default=0),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 1.0, default=1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            max_position_embeddings=fields.integer(
                "max_position_embeddings", 1, _MAX_POSITIONS, default=family.max_position_embeddings
            ),
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            bos_token_id=_read_bos(fields, family, vocab_size),
            eos_token_ids=_read_eos(fields, family, vocab_size),
            quantization=read_quantization(fields),
            raw=copy.deepcopy(dict(values)),
        )
        _check_together(fields, config)
        return config

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key: the part without position, then the rotary part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Elements that the latent cache holds per token and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """What attention scores are multiplied by: qk_head_dim^-0.5, times YaRN's mscale squared.

        Source: ``DeepseekV3Attention.__init__`` in the official ``modeling_deepseek.py``.
        """
        mscale = self.rope_scaling.softmax_mscale if self.rope_scaling else 1.0
        return float(self.qk_head_dim**-0.5) * mscale * mscale

    @property
    def rope_attention_factor(self) -> float:
        """What the rotary cos and sin are multiplied by."""
        return self.rope_scaling.attention_factor if self.rope_scaling else 1.0

    @property
    def has_router_bias(self) -> bool:
        """Whether the router has an ``e_score_correction_bias``, which takes part in the selection only."""
        return self.topk_method == "noaux_tc" and self.n_routed_experts > 0

    @property
    def mtp_layer_ids(self) -> range:
        """Layer numbers of the multi-token-prediction modules: they follow the last decoder layer's."""
        return range(self.num_hidden_layers, self.num_hidden_layers + self.num_nextn_predict_layers)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether `layer` has experts; an MTP layer has if the model has any."""
        if not self.n_routed_experts:
            return False
        if layer >= self.num_hidden_layers:
            return True
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    def layer_kind(self, layer: int) -> LayerKind:
        """Which of the two decoder layers `layer` is."""
        return "moe_layer" if self.is_moe_layer(layer) else "dense_layer"


def _read_bos(fields: Fields, family: Family, vocab_size: int) -> int | None:
    if not fields.present("bos_token_id"):
        return None if "bos_token_id" in fields.values else family.bos_token_id
    return fields.integer("bos_token_id", 0, vocab_size - 1)


def _read_eos(fields: Fields, family: Family, vocab_size: int) -> tuple[int, ...]:
    """``eos_token_id`` is one id, a list of ids, or null for none."""
    if not fields.present("eos_token_id"):
        return () if "eos_token_id" in fields.values else family.eos_token_ids
    value = fields.values["eos_token_id"]
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise fields.error("eos_token_id", f"a token id below vocab_size ({vocab_size}), or a list of them")
    return tuple(ids)


def _check_together(fields: Fields, config: ModelConfig) -> None:
    """Rules between keys that belong to no one group of them."""
    if config.qk_rope_head_dim % 2:
        raise fields.error("qk_rope_head_dim", "an even integer (dimensions are rotated in pairs)")
    heads = config.num_attention_heads
    if fields.integer("num_key_value_heads", 1, _MAX_HEADS, default=heads) != heads:
        raise fields.error("num_key_value_heads", f"num_attention_heads ({heads}): latent attention shares no heads")
    if fields.integer("qk_head_dim", 1, 2 * _MAX_DIM, default=config.qk_head_dim) != config.qk_head_dim:
        raise fields.error("qk_head_dim", f"qk_nope_head_dim + qk_rope_head_dim ({config.qk_head_dim})")
    if config.n_routed_experts * config.num_hidden_layers > _MAX_EXPERTS_IN_ALL:
        most = _MAX_EXPERTS_IN_ALL // config.num_hidden_layers
        raise fields.error("n_routed_experts", f"at most {most} with {config.num_hidden_layers} layers")
