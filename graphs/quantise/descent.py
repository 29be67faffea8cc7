"""Coordinate descent on integer weights: scales and numbers in turn, each set to the best that it can be.

Source: the update of numbers is that of Behdin et al., "QuantEase" (2023), algorithm 2; that of scales is the least
squares solution for one group with all else fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.graphs.quantise.int_weight import stored_scale
from dsv3export.graphs.quantise.scale_search import numbers

_SCALE_CHANGE = (0.5, 2.0)  # of one step; a group of few numbers may ask for nonsense


def descend(
    weight: Tensor, hessian: Tensor, q: Tensor, scale: Tensor, zero: Tensor, bits: int, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Bring ``(W - value) H (W - value)^T`` further down; no step raises it, but for what storing a scale rounds.

    Args:
        weight: float32 [..., N, G * group].
        hessian: float32 [..., G * group, G * group], positive definite.
        q: float32 like `weight`: the numbers to begin with.
        scale, zero: float32 [..., N, G]; zero points stay.
        bits: 4 or 8.
        sweeps: How often to go over all columns.

    Returns:
        Numbers and scales.
    """
    q, scale = q.clone(), scale.clone()
    group = weight.shape[-1] // scale.shape[-1]
    value = ((q.unflatten(-1, (-1, group)) - zero[..., None]) * scale[..., None]).flatten(-2)
    # How the loss falls with each value, times -1/2.
    slope = (weight - value) @ hessian
    for _ in range(sweeps):
        for g in range(scale.shape[-1]):
            part = slice(g * group, (g + 1) * group)
            before = (q[..., part] - zero[..., g, None]) * scale[..., g, None]
            near, local = hessian[..., part, part], slope[..., part].clone()
            scale[..., g] = _best_scale(scale[..., g], before, near, local)
            _set_numbers(q[..., part], scale[..., g], zero[..., g], near, local, bits)
            after = (q[..., part] - zero[..., g, None]) * scale[..., g, None]
            slope -= (after - before) @ hessian[..., part, :]
    return q, scale


def _best_scale(scale: Tensor, value: Tensor, hessian: Tensor, slope: Tensor) -> Tensor:
    """The best scale [..., N] that can be stored, for a group with the given one and values; updates `slope`."""
    response = value @ hessian
    curvature = (response * value).sum(-1)
    factor = 1 + (slope * value).sum(-1) / torch.where(curvature > 0, curvature, torch.inf)
    best = stored_scale(scale * factor.clamp(*_SCALE_CHANGE))
    slope -= (best / scale - 1)[..., None] * response
    return best


def _set_numbers(q: Tensor, scale: Tensor, zero: Tensor, hessian: Tensor, slope: Tensor, bits: int) -> None:
    """Set each number of a group to the best one in turn; updates `q` and `slope` in place."""
    for k in range(q.shape[-1]):
        present = (q[..., k] - zero) * scale
        wanted = present + slope[..., k] / hessian[..., k, k, None]
        number = numbers(wanted, scale, zero, bits)
        moved = (number - zero) * scale - present
        q[..., k] = number
        slope -= moved[..., None] * hessian[..., None, k, :]
