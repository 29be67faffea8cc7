"""config.json, checked: `ModelConfig` and the parts of it."""

from __future__ import annotations

from dsv3export.config.model_config import LayerKind, ModelConfig
from dsv3export.config.quantization import Fp8Quantization
from dsv3export.config.rope_scaling import RopeScaling
from dsv3export.config.routing import ScoringFunc, TopkMethod

__all__ = ["Fp8Quantization", "LayerKind", "ModelConfig", "RopeScaling", "ScoringFunc", "TopkMethod"]
