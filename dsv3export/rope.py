"""Rotary frequencies, with YaRN's ramp between keeping and stretching them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dsv3export.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> npt.NDArray[np.float32]:
    """The angle per position of each rotated pair: float32 [qk_rope_head_dim / 2].

    Source: ``DeepseekV3YarnRotaryEmbedding._set_cos_sin_cache`` in the official ``modeling_deepseek.py``; every step
    is in float32 as there, because positions of 10^5 magnify the last bit.
    """
    dim = config.qk_rope_head_dim
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # numpy's float32 power errs in the last bit where torch's hardly ever does; float64, rounded, equals torch's.
    wavelengths = np.power(np.float64(np.float32(config.rope_theta)), exponents.astype(np.float64)).astype(np.float32)
    kept = np.reciprocal(wavelengths)
    scaling = config.rope_scaling
    if scaling is None:
        return kept
    stretched = np.reciprocal(np.float32(scaling.factor) * wavelengths)
    keep = np.float32(1.0) - _ramp(scaling, dim, config.rope_theta)
    mixed: npt.NDArray[np.float32] = stretched * (np.float32(1.0) - keep) + kept * keep
    return mixed


def _ramp(scaling: RopeScaling, dim: int, theta: float) -> npt.NDArray[np.float32]:
    """0 for pairs that turn fast enough to be kept, 1 for those to stretch, linear between: float32 [dim / 2]."""
    low = max(math.floor(_pair_of_rotations(scaling.beta_fast, scaling, dim, theta)), 0)
    high: float = min(math.ceil(_pair_of_rotations(scaling.beta_slow, scaling, dim, theta)), dim - 1)
    if high == low:
        high += 0.001
    pairs = np.arange(dim // 2, dtype=np.float32)
    ramp: npt.NDArray[np.float32] = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return ramp


def _pair_of_rotations(rotations: float, scaling: RopeScaling, dim: int, theta: float) -> float:
    """The (fractional) pair that turns `rotations` times within the original context."""
    context = scaling.original_max_position_embeddings
    return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))
