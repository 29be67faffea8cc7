"""Which architectures are built, by name; near relatives are refused by name, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3export.config.fields import Fields


@dataclass(frozen=True)
class Family:
    """What a ``model_type`` means where config.json leaves a key out.

    The values are those on which the official ``configuration_deepseek.py`` and transformers' class agree. Keys that
    set tensor shapes have no default here: a config.json without them is incomplete.
    """

    model_type: str
    architecture: str
    n_group: int
    topk_group: int
    topk_method: str
    scoring_func: str
    norm_topk_prob: bool
    routed_scaling_factor: float
    first_k_dense_replace: int
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    n_group=8,
    topk_group=4,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    first_k_dense_replace=3,
    max_position_embeddings=4096,
    bos_token_id=0,
    eos_token_ids=(1,),
)

# The two sources disagree on the token ids of a V2 config that names none, so none are assumed.
DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    n_group=1,
    topk_group=1,
    topk_method="greedy",
    scoring_func="softmax",
    norm_topk_prob=False,
    routed_scaling_factor=1.0,
    first_k_dense_replace=0,
    max_position_embeddings=2048,
    bos_token_id=None,
    eos_token_ids=(),
)

FAMILIES = {family.model_type: family for family in (DEEPSEEK_V3, DEEPSEEK_V2)}

REFUSED = {
    "deepseek": "DeepSeek-MoE (V1) has no latent attention",
    "deepseek_v32": "DeepSeek-V3.2 attends sparsely through an indexer",
    "deepseek_v4": "DeepSeek-V4 is another architecture",
    "deepseek_vl_v2": "DeepSeek-VL2 has a vision tower",
    "kimi_k2": "Kimi K2 is not tested here",
    "kimi_k25": "Kimi K2.5 has a vision tower",
    "glm4_moe_lite": "GLM-4.7-Flash is not tested here",
    "glm_moe_dsa": "GLM-5 attends sparsely through an indexer",
    "longcat_flash": "LongCat-Flash has zero-computation experts",
    "minicpm3": "MiniCPM3 scales its residual stream",
}
"""model_type of relatives that share DeepSeek's latent attention or name -> why they are not built."""


def read_family(fields: Fields) -> Family:
    """The family that ``model_type`` and ``architectures`` name.

    Raises:
        ConfigError: Another architecture, or keys that only another architecture has.
    """
    name = fields.values.get("model_type")
    allowed = " or ".join(f'"{family}"' for family in FAMILIES)
    if not isinstance(name, str) or name not in FAMILIES:
        reason = REFUSED.get(name) if isinstance(name, str) else None
        raise fields.error("model_type", allowed, fix=f"This architecture is not supported: {reason}" if reason else "")
    family = FAMILIES[name]
    if fields.present("architectures") and fields.values["architectures"] != [family.architecture]:
        raise fields.error("architectures", f'["{family.architecture}"] (model_type is "{name}")')
    for key in ("index_topk", "index_n_heads", "index_head_dim"):
        if fields.present(key):
            raise fields.error(key, "no such key", fix="The sparse attention of DeepSeek-V3.2 is not supported")
    fields.must_be("hidden_act", "silu", "the only activation of this architecture")
    fields.must_be("attention_bias", False, "projections with a bias are not supported")
    fields.must_be("mlp_bias", False, "projections with a bias are not supported")
    fields.must_be("rope_interleave", True, "checkpoints store rotary dimensions in pairs")
    return family
