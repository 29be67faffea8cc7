"""What the uncut executor computes of two ragged sequences, for cut ones to be compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs.executor import Executor
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import LatentCache

SLOTS, CAPACITY = range(2), 24
PROMPTS: NDArray[np.int64] = np.random.default_rng(8).integers(2, 2000, (2, 9))
# the second sequence is shorter: its next tokens stand at positions 5, 6 and 7
FIRST, SECOND = np.zeros(2, np.int64), np.array([9, 5])
NEXT: NDArray[np.int64] = np.random.default_rng(9).integers(2, 2000, (2, 3))


@dataclass(frozen=True)
class Computed:
    """Logits of all rows and hidden states of a prefill and of a step behind it; the drafts of the prefill's pairs."""

    prefill: tuple[NDArray[np.float32], NDArray[np.float32]]
    step: tuple[NDArray[np.float32], NDArray[np.float32]]
    drafts: NDArray[np.float32]


def whole_model(checkpoint: Path, recipe: Recipe) -> Computed:
    """By the executor."""
    executor = Executor(Checkpoint.open(checkpoint), recipe=recipe)
    cache = LatentCache(executor.cache_layout, len(SLOTS), CAPACITY)
    prefill = executor.step_hidden(PROMPTS, FIRST, cache, SLOTS, rows(PROMPTS))
    step = executor.step_hidden(NEXT, SECOND, cache, SLOTS, rows(NEXT))
    drafts = LatentCache(executor.draft_cache_layout, len(SLOTS), CAPACITY)
    return Computed(prefill, step, executor.draft(prefill[1], PROMPTS, FIRST, drafts, SLOTS, rows(PROMPTS))[0])


def rows(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """All rows of a step."""
    return np.arange(ids.size)


def largest_difference(one: Computed, other: Computed) -> float:
    """Over all logits and hidden states."""
    pairs = [*zip(one.prefill, other.prefill, strict=True), *zip(one.step, other.step, strict=True)]
    return max(float(np.abs(a - b).max()) for a, b in [*pairs, (one.drafts, other.drafts)])


def same_tokens(one: Computed, other: Computed) -> bool:
    """Whether the likeliest token is the same everywhere."""
    pairs = [(one.prefill[0], other.prefill[0]), (one.step[0], other.step[0]), (one.drafts, other.drafts)]
    return all(bool((a.argmax(-1) == b.argmax(-1)).all()) for a, b in pairs)
