"""Rotary frequencies against transformers' own, to the last bits."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.config import ModelConfig
from dsv3export.presets import preset
from dsv3export.rope import inverse_frequencies
from tests.support.synthetic import tiny_config

transformers = pytest.importorskip("transformers")

V3, V2_LITE = preset("deepseek_v3").raw, preset("deepseek_v2_lite").raw
FIXTURE = tiny_config(
    qk_rope_head_dim=32, max_position_embeddings=1024, rope_scaling={**V3["rope_scaling"], "factor": 4}
)
CASES = {
    "DeepSeek-V3": V3,
    "DeepSeek-V2-Lite": V2_LITE,
    "the fixture": FIXTURE,
    "no scaling": {**V3, "rope_scaling": None},
    "another base, narrow": {**V3, "rope_theta": 50000, "qk_rope_head_dim": 16, "rope_scaling": None},
    "another base, wide": {**V3, "rope_theta": 1e6, "qk_rope_head_dim": 48},
    "a ramp of no width": {**V3, "rope_scaling": {**V3["rope_scaling"], "beta_fast": 1, "factor": 32}},
    "a tiny context": {**V3, "rope_scaling": {**V3["rope_scaling"], "original_max_position_embeddings": 2}},
}


def theirs(raw: dict[str, Any]) -> tuple[np.ndarray[Any, np.dtype[np.float32]], float]:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

    ignored = ("model_type", "architectures", "quantization_config")
    # A deep copy: transformers writes into the rope_scaling that it is given.
    kept = {key: copy.deepcopy(value) for key, value in raw.items() if key not in ignored}
    module = DeepseekV3RotaryEmbedding(DeepseekV3Config.from_dict(kept))
    return module.inv_freq.numpy(), float(module.attention_scaling)


@pytest.mark.parametrize("raw", CASES.values(), ids=CASES.keys())
def test_frequencies_equal_those_of_transformers(raw: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(raw)
    expected, factor = theirs(raw)
    frequencies = inverse_frequencies(config)
    assert frequencies.dtype == np.float32
    assert frequencies.shape == (config.qk_rope_head_dim // 2,)
    # Equal with torch's AVX-512 code; its other code paths err in the last bit here and there.
    np.testing.assert_array_max_ulp(frequencies, expected, maxulp=2)
    assert config.rope_attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("raw", [V3, V2_LITE, {**V3, "rope_scaling": None}], ids=["V3", "V2-Lite", "none"])
def test_the_softmax_scale_equals_that_of_transformers(raw: dict[str, Any]) -> None:
    import torch
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    ignored = ("model_type", "architectures", "quantization_config")
    kept = {key: copy.deepcopy(value) for key, value in raw.items() if key not in ignored}
    with torch.device("meta"):
        attention = DeepseekV3Attention(DeepseekV3Config.from_dict(kept), 0)
    assert ModelConfig.from_dict(raw).softmax_scale == pytest.approx(attention.scaling, rel=1e-12)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    config = preset("deepseek_v3")
    plain = inverse_frequencies(ModelConfig.from_dict({**V3, "rope_scaling": None}))
    frequencies = inverse_frequencies(config)
    # Pair 10 turns about 32 times within 4096 positions, pair 23 about once.
    np.testing.assert_array_equal(frequencies[:11], plain[:11])
    np.testing.assert_allclose(frequencies[23:], plain[23:] / 40, rtol=3e-7)
    assert math.isclose(plain[10] * 4096 / (2 * math.pi), 32, rel_tol=0.15)


@given(
    half=st.integers(1, 96),
    theta=st.one_of(st.integers(2, 10**7), st.floats(1.5, 1e7)),
    factor=st.one_of(st.integers(1, 64), st.floats(1.0, 64.0)),
    context=st.integers(1, 200_000),
    betas=st.tuples(st.floats(0.01, 64.0), st.floats(0.01, 64.0)),
)
def test_any_settings_agree_with_transformers(
    half: int, theta: float, factor: float, context: int, betas: tuple[float, float]
) -> None:
    scaling = {"type": "yarn", "factor": factor, "original_max_position_embeddings": context, "mscale": 1.0}
    scaling |= {"mscale_all_dim": 1.0, "beta_fast": max(betas), "beta_slow": min(betas)}
    raw = tiny_config(qk_rope_head_dim=2 * half, rope_theta=theta, rope_scaling=scaling)
    # torch's vectorised float32 power is now and then one bit off.
    np.testing.assert_allclose(inverse_frequencies(ModelConfig.from_dict(raw)), theirs(raw)[0], rtol=1e-6, atol=0)
