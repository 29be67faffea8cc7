"""What the latent cache holds, and how far that is from what was to be written into it and from another model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.difference import Difference, Summary
from dsv3export.compare.stages import Values

Array = NDArray[Any]
_HELD = ("self_attn.latent_append.latent", "self_attn.latent_append")
_WRITTEN = ("self_attn.kv_a_layernorm", "self_attn.rotary_embedding_2")


@dataclass(frozen=True)
class CacheDiff:
    """A layer's latent cache; each summary has the error by position.

    Attributes:
        name: ``layers.3.self_attn.latent_append``.
        stage: The layer.
        format: What the cache of the second model holds against the rows that the model computed for it: the rounding
            of its format and nothing else.
        injected: What it holds against what the first model's holds, the layer's input being the first model's.
        propagated: The same on its own input.
    """

    name: str
    stage: str
    format: Summary
    injected: Summary
    propagated: Summary


class CacheErrors:
    """Accumulates those of one layer, a prompt at a time."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._format, self._injected, self._propagated = Difference(), Difference(), Difference()
        self._seen = False

    def add(self, prompt: int, expected: Values, propagated: Values, injected: Values) -> None:
        """The values of a prompt's run; those of a stage without a cache add nothing."""
        first, second, third = (self._held(values) for values in (expected, propagated, injected))
        written = [injected.get(f"{self._stage}.{name}") for name in _WRITTEN]
        rows = [part for part in written if part is not None]
        if first is None or second is None or third is None or len(rows) != len(written):
            return
        if not first.shape == second.shape == third.shape:
            return
        self._seen = True
        self._propagated.add(prompt, first, second)
        self._injected.add(prompt, first, third)
        self._format.add(prompt, np.concatenate([part.reshape(len(third), -1) for part in rows], axis=1), third)

    def summary(self) -> CacheDiff | None:
        """None for a stage without a cache."""
        if not self._seen:
            return None
        errors = (each.summary() for each in (self._format, self._injected, self._propagated))
        return CacheDiff(f"{self._stage}.{_HELD[1]}", self._stage, *errors)

    def _held(self, values: Values) -> Array | None:
        """The rows that attention reads, [S, Dc + Dr]."""
        found = [values[f"{self._stage}.{name}"] for name in _HELD if f"{self._stage}.{name}" in values]
        return found[0].reshape(-1, found[0].shape[-1]) if found else None
