"""Integer weights by plain rounding: the grid that a group's largest values span, and the nearest number on it."""

from __future__ import annotations

import numpy as np
import torch

from dsv3export.graphs.quantise.int_weight import (
    Float32,
    IntWeight,
    UInt8,
    in_groups,
    middle,
    out_of_groups,
    stored_scale,
)

_SMALLEST_SCALE = np.finfo(np.float32).tiny  # below it a scale is subnormal, and w / scale no longer near the range


def quantise_groups(weight: Float32, bits: int, group: int | None, symmetric: bool) -> IntWeight:
    """Round each weight to the nearest of its group's 2^bits values.

    Args:
        weight: float32 [..., N, K], finite.
        bits: 4 or 8.
        group: How many neighbours along K share a scale; None = all of a row (per output channel).
        symmetric: The range is -amax..amax around the middle number; otherwise min..max, widened to hold zero, around
            a zero point of its own.
    """
    scale, zero_point = grid(in_groups(weight, group or weight.shape[-1]), bits, symmetric)
    return round_to_grid(weight, scale, zero_point, bits, group)


def grid(groups: Float32, bits: int, symmetric: bool) -> tuple[Float32, UInt8 | None]:
    """Scale and zero point [..., G] that span the groups [..., G, group]."""
    if symmetric:
        amax = np.abs(groups).max(axis=-1, initial=0)
        return usable_scale(amax / np.float32(middle(bits) - 1)), None
    low = groups.min(axis=-1, initial=0)
    high = groups.max(axis=-1, initial=0)
    top = (1 << bits) - 1
    # Halved first: high - low may overflow.
    scale = usable_scale((high / 2 - low / 2) / np.float32(top / 2))
    return scale, np.clip(np.rint(-low / scale), 0, top).astype(np.uint8)


def usable_scale(scale: Float32) -> Float32:
    """As stored; a group of zeros (or of numbers too small to divide by) gets the scale 1, and so the value zero."""
    usable = np.where(scale >= _SMALLEST_SCALE, scale, 1).astype(np.float32)
    stored: Float32 = stored_scale(torch.from_numpy(usable)).numpy()
    return stored


def round_to_grid(weight: Float32, scale: Float32, zero_point: UInt8 | None, bits: int, group: int | None) -> IntWeight:
    """The nearest number (ties to even) of a given grid for each weight [..., N, K]."""
    width = weight.shape[-1]
    groups = in_groups(weight, group or width)
    zero = np.float32(middle(bits)) if zero_point is None else zero_point[..., None].astype(np.float32)
    rounded = np.rint(groups / scale[..., None]) + zero
    q = np.clip(rounded, 0, (1 << bits) - 1).astype(np.uint8)
    return IntWeight(np.ascontiguousarray(out_of_groups(q, width)), scale, zero_point)


def dequantise(weight: IntWeight, bits: int, group: int | None) -> Float32:
    """The float32 value [..., N, K] of an integer weight, as ONNX Runtime computes it: (q - zero point) * scale."""
    width = weight.q.shape[-1]
    groups = in_groups(weight.q, group or width).astype(np.float32)
    zero = middle(bits) if weight.zero_point is None else weight.zero_point[..., None].astype(np.float32)
    value: Float32 = (groups - zero) * weight.scale[..., None]
    return out_of_groups(value, width)


def split_groups(weight: IntWeight, group: int | None, into: int) -> IntWeight:
    """The same weight with smaller groups, each with the scale and zero point of the group that it was part of.

    ONNX Runtime's QMoE is several times slower on rows of one group than on groups of 128.

    Args:
        group: The present groups; None = one for each row.
        into: The new size, a divisor of `group` unless that is None.
    """
    width = weight.q.shape[-1]
    parts = np.arange(0, width, into) // (group or width)
    zero_point = weight.zero_point
    return IntWeight(
        weight.q,
        np.ascontiguousarray(weight.scale[..., parts]),
        None if zero_point is None else np.ascontiguousarray(zero_point[..., parts]),
    )
