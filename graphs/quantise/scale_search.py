"""Scales with the least squared error: the largest values of a group may be clipped where the others gain by it."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.graphs.quantise.int_weight import middle, stored_scale

_STEPS, _SMALLEST_SHARE = 40, 0.5
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def search_grid(groups: Tensor, bits: int, symmetric: bool, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The grid, among shrunken ones, with the least error sum of importance * (w - value)^2 in each group.

    A symmetric grid has one number more below the middle than above: its scale gets the sign that puts the group's
    largest value there.

    Args:
        groups: float32 [..., group].
        bits: 4 or 8.
        symmetric: Whether the zero point is fixed to the middle.
        importance: What `groups` broadcasts with; None = all ones.

    Returns:
        Scale and zero point, float32 [...].
    """
    low, high = _ends(groups, symmetric)
    top = (1 << bits) - 1
    best = groups.new_full(low.shape, torch.inf)
    best_scale, best_zero = torch.ones_like(best), torch.full_like(best, middle(bits))
    # The widest one tried is the one that plain rounding takes, so that the result is never worse.
    widest = middle(bits) / (middle(bits) - 1) if symmetric else 1.0
    for shrink in torch.linspace(widest, _SMALLEST_SHARE, _STEPS).tolist():
        scale = low * (-shrink / middle(bits)) if symmetric else (high - low) * (shrink / top)
        scale = stored_scale(torch.where(scale.abs() >= _SMALLEST_SCALE, scale, 1.0))
        zero = torch.full_like(scale, middle(bits)) if symmetric else (-low * shrink / scale).round().clamp(0, top)
        error = (groups - on_grid(groups, scale[..., None], zero[..., None], bits)).square()
        total = (error if importance is None else error * importance).sum(-1)
        better = total < best
        best = torch.where(better, total, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def numbers(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The number on the grid that is nearest to each weight, as a float in 0..2^bits - 1."""
    return (w / scale).round().add_(zero).clamp_(0, (1 << bits) - 1)


def on_grid(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The value on the grid that is nearest to each weight."""
    return numbers(w, scale, zero, bits).sub_(zero).mul_(scale)


def _ends(groups: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """What lies at number 0 and at the highest one: of a symmetric grid the largest value at 0, whatever its sign."""
    if not symmetric:
        return groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return largest, -largest
