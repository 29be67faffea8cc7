"""TensorRT-RTX engines that compute in bfloat16 and float16, replayed, against the float32 executor at their recipe.

Replay rounds at the output of every 16-bit layer, as a strongly typed network says. So what is seen here is the error
of the type; an engine whose kernels are fused rounds less often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dsv3export.graphs import Executor
from tests.e2e.goldens import Array, Golden

LAYERS = (1, 2, 3)
PROMPTS = (2, 3, 4, 5, 7)
TOKENS = 96


@dataclass(frozen=True)
class Narrow:
    """Tolerances of a type, about 1.5 times what was seen; logits have a size of 4.5 (root of the mean square).

    Attributes:
        median, most: Of a token's largest error of a logit, where all routers chose as in float32.
        flipped: Share of tokens, besides two, for which some router did not. Each goes through another expert, and has
            errors up to the size of what that expert contributes.
        margin: Between the last choice and the next best of a router; what is closer may flip.
        hidden: Error of a token's hidden state after a layer, over its norm.
    """

    median: float
    most: float
    flipped: float
    margin: float
    hidden: float


BF16 = Narrow(median=0.08, most=0.4, flipped=0.06, margin=0.005, hidden=0.05)
F16 = Narrow(median=0.01, most=0.03, flipped=0.01, margin=0.001, hidden=0.005)
CASES = [
    ("bf16", "bf16", None, BF16),
    ("fp8", "fp8", None, BF16),
    ("bf16", "int8", None, BF16),
    ("bf16", "int4", None, BF16),
    ("bf16", "bf16", "f16", F16),
]


@pytest.mark.parametrize(("variant", "precision", "compute", "tolerance"), CASES, ids=lambda value: str(value)[:6])
@pytest.mark.parametrize("chunk", [2, 256], ids=["decode", "prefill"])
def test_errors_are_those_of_the_type(
    variant: str,
    precision: str,
    compute: str | None,
    tolerance: Narrow,
    chunk: int,
    request: pytest.FixtureRequest,
    replayed_rtx: Callable[..., Any],
) -> None:
    golden: Golden = request.getfixturevalue(f"{variant}_golden")
    replayed = replayed_rtx(variant, precision, compute) if compute else replayed_rtx(variant, precision)
    executor = Executor.from_checkpoint(golden.checkpoint, recipe=replayed.files.manifest.recipe)
    errors, kept = [], []
    for prompt in PROMPTS if chunk > 2 else (3,):
        ids = golden.ids(prompt)[:TOKENS]
        wide = executor.intermediates(ids)
        logits, seen = _replayed(replayed, ids, chunk)
        same = np.logical_and.reduce([_chosen(seen, layer) == _chosen(wide, layer) for layer in LAYERS])
        errors.append(np.abs(logits - executor.logits(ids)).max(axis=1))
        kept.append(same)
        _check_hidden_states(seen, wide, same, tolerance)
        if prompt in (3, 7) and precision == variant:
            _check_flips(golden, prompt, seen, wide, tolerance)

    error, unflipped = np.concatenate(errors), np.concatenate(kept)
    assert np.median(error[unflipped]) <= tolerance.median
    assert error[unflipped].max() <= tolerance.most
    assert (~unflipped).sum() <= 2 + tolerance.flipped * unflipped.size


def _replayed(replayed: Any, ids: list[int], chunk: int) -> tuple[Array, dict[str, Array]]:
    """Logits, and what was seen inside at all positions."""
    parts: list[dict[str, Array]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replayed, "inner", {"moe_layer": ("mlp.gate.ids",)})
        patch.setattr(replayed, "keep", lambda seen: parts.append({n: v.float().numpy() for n, v in seen.items()}))
        logits = replayed.logits(ids, chunk)
    rows = {name: [part[name].reshape(-1, part[name].shape[-1]) for part in parts] for name in parts[0]}
    return logits, {name: np.concatenate(pieces) for name, pieces in rows.items()}


def _chosen(seen: dict[str, Array], layer: int) -> Array:
    """A token's experts as one number: int64 [S]."""
    ids = np.sort(seen[f"layers.{layer}.mlp.gate.ids"].astype(np.int64), axis=1)
    return ids @ (64 ** np.arange(ids.shape[1]))


def _check_hidden_states(seen: dict[str, Array], wide: dict[str, Array], same: Array, tolerance: Narrow) -> None:
    for layer in range(4):
        expected = wide[f"layers.{layer}"][0][same]
        difference = np.linalg.norm(seen[f"layers.{layer}"][same] - expected, axis=1)
        assert (difference <= tolerance.hidden * np.linalg.norm(expected, axis=1)).all(), f"layer {layer}"


def _check_flips(
    golden: Golden, prompt: int, seen: dict[str, Array], wide: dict[str, Array], tolerance: Narrow
) -> None:
    """A router that chooses otherwise, without another having done so for this or an earlier token, was undecided."""
    margins, before = golden.arrays("router"), np.zeros(len(_chosen(wide, 1)), bool)
    for layer in LAYERS:
        key = f"p{prompt}_layer{layer}"
        margin = np.minimum(margins[f"{key}_expert_margin"], margins[f"{key}_group_margin"])[: len(before)]
        flipped = _chosen(seen, layer) != _chosen(wide, layer)
        assert (margin[flipped & ~before] <= tolerance.margin).all(), f"layer {layer}"
        before |= np.logical_or.accumulate(flipped)
