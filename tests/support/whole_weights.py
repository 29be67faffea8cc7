"""Weights that a test makes whole, one unit each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.work import Part, Stage, WorkUnit

Produce = Callable[[PlannedWeight], NDArray[Any]]


def whole(plan: Sequence[PlannedWeight], produce: Produce) -> list[Stage]:
    """`produce` makes the array of each weight of the plan that is no reference."""
    return [Stage(tuple(_unit(weight, produce) for weight in plan if not weight.reference))]


def _unit(weight: PlannedWeight, produce: Produce) -> WorkUnit:
    return WorkUnit((Part(weight),), 4 * weight.nbytes, partial(_make, weight, produce))


def _make(weight: PlannedWeight, produce: Produce) -> Sequence[NDArray[Any]]:
    return [produce(weight)]
