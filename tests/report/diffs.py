"""Comparisons of many layers and of strange contents, made without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dsv3export.compare import LayerDiff
from dsv3export.compare.caches import CacheDiff
from dsv3export.compare.causes import Cause, CauseSplit, ErrorSplit
from dsv3export.compare.difference import ULP_BINS, Coordinate, Summary
from dsv3export.compare.distributions import Candidate, DistributionSummary, Histogram, WorstToken
from dsv3export.compare.layers import Fault, RouterDiff, ValueDiff
from dsv3export.compare.routing import Flip, RoutingSummary

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \u202eb\x00\ud800"
)
PARTS = ("self_attn.q_a_proj", "self_attn.mla_attention", "mlp.gate.linear", "mlp.experts", "")


def summary(error: float, positions: int = 12) -> Summary:
    """One whose every error is `error`."""
    place = Coordinate(0, positions - 1, 3, 1.5, 1.5 + error)
    snr = -20 * math.log10(error) if 0 < error < math.inf else math.inf
    return Summary(
        count=16, max_abs=error, mean_abs=error, relative=error, worst_row=error, cosine=1.0, snr_db=snr,
        ulps=tuple(range(len(ULP_BINS) + 1)), by_position=(error,) * positions, worst=place, first_bad=None,
    )  # fmt: skip


def diff(layers: int = 4, positions: int = 12, error: float = 1e-3, text: str = "before") -> LayerDiff:
    """Error grows from layer to layer; each router flips one token for a reason, the last one without."""
    stages = ["embed", *(f"layers.{i}" for i in range(layers)), "head"]
    values, routers = [], []
    for place, stage in enumerate(stages):
        for part in PARTS if stage.startswith("layers") else ("lm_head" if stage == "head" else "embed_tokens",):
            name = f"{stage}.{part}".rstrip(".") if stage.startswith("layers") else part
            errors = summary(error * (place + 1), positions), summary(error / (place + 1), positions)
            values.append(ValueDiff(name, stage, (1, positions, 8), *errors))
        if stage.startswith("layers"):
            flip = Flip(0, 1, (0, 1), (0, 2), 1e-3, 1e-3 if stage != stages[-2] else 0.0)
            routers.append(RouterDiff(f"{stage}.mlp.gate.ids", stage, RoutingSummary(positions, 0.9, (flip,)),
                                      RoutingSummary(positions, 1.0, ())))  # fmt: skip
    worst = WorstToken(0, 5, 0.7, 3, Candidate(4, 0.5, 0.1, text), Candidate(9, 0.2, 0.6, text), text)
    logits = DistributionSummary(positions, 1e-3, 0.7, 5e-4, 0.9, 0.95, 3,
                                 Histogram((1e-3, 1e-2, 1e-1), (positions - 1, 0, 0, 1)), (error,) * positions,
                                 (worst,))  # fmt: skip
    caches = tuple(
        CacheDiff(f"{stage}.self_attn.latent_append", stage, summary(error / 2, positions), summary(error, positions),
                  summary(error * place, positions))
        for place, stage in enumerate(stages) if stage.startswith("layers")
    )  # fmt: skip
    return LayerDiff("right", "in question", 0.1, tuple(values), tuple(routers), (), (), logits, None, (positions,),
                     logits, caches, causes(stages, error))  # fmt: skip


def causes(stages: Sequence[str], error: float) -> ErrorSplit:
    """Of four causes."""
    steps = tuple(Cause(name, error / (place + 1), 0.4 - 0.1 * place)
                  for place, name in enumerate(("weights", "activations", "cache", "backend")))  # fmt: skip
    layers = tuple(CauseSplit(stage, error * 2, steps) for stage in stages)
    return ErrorSplit(layers, CauseSplit("head", error, steps), (1e-4, 2e-4, 2e-4, 3e-4))


def hostile() -> LayerDiff:
    """Every text is an attack, and a layer has 0, infinity and NaN in place of errors."""
    made = diff(text=HOSTILE)
    errors = map(summary, (0.0, math.inf, math.nan, 1e-300, 1e300))
    strange = [replace(value, name=f"{value.name}{HOSTILE}", propagated=error, injected=error)
               for value, error in zip(made.values, errors, strict=False)]  # fmt: skip
    fault = Fault(HOSTILE, HOSTILE, math.nan, 0.1, 0, 3, 1, [HOSTILE], math.inf)
    return replace(
        made, expected=HOSTILE, got=HOSTILE, values=(*strange, *made.values[len(strange) :]), first_fault=fault,
        only_expected=(HOSTILE,), only_got=(HOSTILE,),
    )  # fmt: skip
