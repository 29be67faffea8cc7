"""Engines for ONNX Runtime's CUDA provider, and how far each may be from the executor at the same recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3export.engine.manifest import Compute


@dataclass(frozen=True)
class ProviderCase:
    """An engine.

    Attributes:
        recipe: Its recipe file.
        compute: What integer and fp8 weights are multiplied in.
        kl: Largest mean KL(executor || engine) on the tiny trained model, in nats: about three times what rounding at
            every step gives.
        top1: Least share of tokens with the same likeliest token.
    """

    recipe: str
    compute: Compute | None
    kl: float
    top1: float


_FP8 = 'precision = "fp8"\n[components.routed_experts]\nformat = "int8"\nsymmetric = false\n'
CASES: Mapping[str, ProviderCase] = {
    "fp32": ProviderCase('precision = "fp32"', None, 1e-8, 1.0),
    "int8 in bf16": ProviderCase('precision = "int8"', "bf16", 1e-3, 0.97),
    "int8 in f16": ProviderCase('precision = "int8"', "f16", 5e-4, 0.98),
    "int4 in bf16": ProviderCase('precision = "int4"', "bf16", 1e-3, 0.97),
    "int4 in f16": ProviderCase('precision = "int4"', "f16", 1e-4, 0.98),
    "fp8 in bf16": ProviderCase(_FP8, "bf16", 5e-4, 0.98),
    "fp8 in f16": ProviderCase(_FP8, "f16", 5e-4, 0.98),
}
