"""The rotary settings of config.json, in DeepSeek's spelling and in that of transformers 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsv3export.config.fields import Fields

_MAX_POSITIONS = 2**31 - 1


@dataclass(frozen=True)
class RopeScaling:
    """YaRN (arXiv 2309.00071); the meaning of each number is that of the official ``modeling_deepseek.py``."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied by."""
        return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)

    @property
    def softmax_mscale(self) -> float:
        """The softmax scale is multiplied by the square of this."""
        return yarn_mscale(self.factor, self.mscale_all_dim)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature, 0.1 * mscale * ln(factor) + 1, or 1 where nothing is scaled."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) from ``rope_theta`` + ``rope_scaling`` or from ``rope_parameters``.

    A file may hold both spellings if they say the same.

    Raises:
        ConfigError: A rope type other than default and yarn, a number out of range, or two spellings that disagree.
    """
    top_theta = fields.number("rope_theta", 1.5, 1e30, default=10000.0)
    old, new = fields.table("rope_scaling"), fields.table("rope_parameters")
    if new is None:
        return top_theta, _read_scaling(old) if old is not None else None
    theta = new.number("rope_theta", 1.5, 1e30, default=top_theta)
    if fields.present("rope_theta") and theta != top_theta:
        raise new.error("rope_theta", f"the value of rope_theta, {top_theta:g}")
    scaling = _read_scaling(new)
    if old is not None and _read_scaling(old) != scaling:
        raise fields.error("rope_scaling", "the same scaling as in rope_parameters")
    return theta, scaling


def _read_scaling(table: Fields) -> RopeScaling | None:
    """None for type "default"; the keys are those of ``rope_scaling``."""
    key = "rope_type" if table.present("rope_type") else "type"
    kind = table.choice(key, ("default", "yarn"), default=None if _has_numbers(table) else "default")
    if table.present("type") and table.values["type"] != kind:
        raise table.error("type", f'the value of rope_type, "{kind}"')
    table.must_be("truncate", True, "DeepSeek rounds YaRN's ramp to whole dimensions")
    if table.number("partial_rotary_factor", 0.0, 1.0, default=1.0) != 1.0:
        raise table.error("partial_rotary_factor", "1 (all of qk_rope_head_dim is rotated)")
    if kind == "default":
        return None
    scaling = RopeScaling(
        factor=table.number("factor", 1.0, 1e6),
        original_max_position_embeddings=table.integer("original_max_position_embeddings", 1, _MAX_POSITIONS),
        beta_fast=table.number("beta_fast", 1e-6, 1e6, default=32.0),
        beta_slow=table.number("beta_slow", 1e-6, 1e6, default=1.0),
        mscale=table.number("mscale", 0.0, 100.0, default=1.0),
        mscale_all_dim=table.number("mscale_all_dim", 0.0, 100.0, default=0.0),
    )
    if scaling.beta_fast < scaling.beta_slow:
        raise table.error("beta_fast", f"at least beta_slow ({scaling.beta_slow:g})")
    given = table.number("attention_factor", 0.0, 1e6, default=scaling.attention_factor)
    if not math.isclose(given, scaling.attention_factor, rel_tol=1e-6):
        raise table.error("attention_factor", f"what mscale and mscale_all_dim give, {scaling.attention_factor:.7g}")
    return scaling


def _has_numbers(table: Fields) -> bool:
    """Whether the table scales something, so that a missing type is an error."""
    return any(key not in ("rope_theta", "partial_rotary_factor") for key in table.values)
