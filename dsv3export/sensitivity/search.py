"""Choosing a scheme for each unit, from what each costs by itself.

Rounding errors of different units are about independent, so that their divergences add up; how well that holds for a
mix is measured on the mix itself, and the next choice is made with the ratio of what was measured to what was added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dsv3export.recipe import Precision, Scheme
from dsv3export.sensitivity.front import pareto_front
from dsv3export.sensitivity.units import Unit

# A mix whose divergence is this much of the bound is not improved upon.
_CLOSE = 0.9
_MOST_MIXES = 6


@dataclass(frozen=True)
class Option:
    """A scheme for a unit: the bytes of the unit's weights at it, and the divergence that it alone causes, in nats."""

    precision: Precision
    scheme: Scheme
    nbytes: int
    kl: float


@dataclass(frozen=True)
class Target:
    """What is wanted: at most this much divergence, in nats a token, at most so many bytes of weights, or both."""

    max_kl: float = math.inf
    max_bytes: float = math.inf


Choice = dict[Unit, Option]
Options = Mapping[Unit, Sequence[Option]]


@dataclass(frozen=True)
class Mix:
    """A choice, with the divergence that was predicted for it and the one that was measured, and all weights' bytes."""

    choice: Choice
    predicted_kl: float
    measured_kl: float
    nbytes: int

    def meets(self, target: Target) -> bool:
        return self.measured_kl <= target.max_kl and self.nbytes <= target.max_bytes


def choose(options: Options, target: Target, fixed_bytes: int) -> Choice:
    """The fewest bytes whose divergences add up to at most `max_kl`; without that bound, the least divergence.

    Never more than `max_bytes`, if there is a choice of so few. Where none is good enough, the best of those.

    Args:
        fixed_bytes: Of weights that belong to no unit.
    """
    front = pareto_front({unit: [(each.nbytes, each.kl) for each in known] for unit, known in options.items()})
    small = int(np.searchsorted(front.nbytes, target.max_bytes - fixed_bytes, side="right"))
    good = len(front.kl)
    if math.isfinite(target.max_kl):
        good = int(np.searchsorted(-front.kl, -target.max_kl))
    chosen = front.choice(max(min(good, small - 1), 0))
    return {unit: options[unit][place] for unit, place in chosen.items()}


def total_kl(choice: Choice) -> float:
    return math.fsum(option.kl for option in choice.values())


def total_bytes(choice: Choice, fixed_bytes: int) -> int:
    return fixed_bytes + sum(option.nbytes for option in choice.values())


def search(
    options: Options, target: Target, fixed_bytes: int, measure: Callable[[Choice], float | None], ratio: float = 1.0
) -> list[Mix]:
    """Mixes in the order in which they were tried; `best` says which to take.

    Args:
        measure: The divergence of a choice; None when there is no budget left.
        ratio: Of measured to added-up divergence, as far as it is known.
    """
    tried: list[Mix] = []
    while len(tried) < _MOST_MIXES:
        choice = choose(options, Target(target.max_kl / ratio, target.max_bytes), fixed_bytes)
        if any(mix.choice == choice for mix in tried):
            break
        measured = measure(choice)
        if measured is None:
            break
        added = total_kl(choice)
        tried.append(Mix(choice, added * ratio, measured, total_bytes(choice, fixed_bytes)))
        if math.isinf(target.max_kl) or _CLOSE * target.max_kl <= measured <= target.max_kl or not added:
            break
        ratio = max(measured / added, 1e-6)
    return tried


def best(tried: Sequence[Mix], target: Target) -> Mix | None:
    """Of those that meet the target the smallest, or without a bound on divergence the one of least divergence.

    If none does: the one of least divergence among those that are small enough, or the smallest.
    """
    met = [mix for mix in tried if mix.meets(target)]
    if met:
        return min(met, key=lambda mix: mix.measured_kl if math.isinf(target.max_kl) else mix.nbytes)
    small = [mix for mix in tried if mix.nbytes <= target.max_bytes]
    if small:
        return min(small, key=lambda mix: mix.measured_kl)
    return min(tried, key=lambda mix: mix.nbytes, default=None)
