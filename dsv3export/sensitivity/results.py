"""What a study of a model's weights has found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsv3export.recipe import Component, Precision, Recipe
from dsv3export.sensitivity.journal import Measurement

_MEGABYTE = 1e6


@dataclass(frozen=True)
class Trial:
    """One unit at one precision, all else in float32.

    Attributes:
        saved_bytes: Against the unit in float32.
        measured: None where the budget ended before.
    """

    unit: str
    component: Component
    layers: tuple[int, ...]
    precision: Precision
    scheme: str
    saved_bytes: int
    measured: Measurement | None

    @property
    def harm(self) -> float:
        """Divergence for each megabyte saved, in nats."""
        return math.inf if self.measured is None else self.measured.kl / max(self.saved_bytes, 1) * _MEGABYTE


@dataclass(frozen=True)
class Whole:
    """All units at one precision, or the mix that was chosen: `predicted_kl` is None where nothing was added up."""

    name: str
    nbytes: int
    predicted_kl: float | None
    measured: Measurement


@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes:
    float32_bytes: Of all weights.
    trials: In the order of harm for each byte saved, the largest first; those not measured last.
    uniform: Each precision throughout, for comparison.
    mix: What was chosen for the target; None without one.
    recipe: The mix, as `Recipe.to_json` spells it.
    met: Whether the mix, as measured, meets the target.
    """

    float32_bytes: int
    trials: tuple[Trial, ...]
    uniform: tuple[Whole, ...]
    max_kl: float = math.inf
    max_bytes: float = math.inf
    mix: Whole | None = None
    choice: tuple[tuple[str, str], ...] = ()
    met: bool = False
    recipe: Recipe | None = None
