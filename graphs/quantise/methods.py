"""The methods of choosing integers: plain rounding, scales of least error, and calibrated with the layer's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dsv3export.errors import CheckpointError, InternalError
from dsv3export.graphs.quantise.descent import descend
from dsv3export.graphs.quantise.gptq import gptq
from dsv3export.graphs.quantise.int_weight import Float32, IntWeight, middle
from dsv3export.graphs.quantise.integer import quantise_groups
from dsv3export.graphs.quantise.scale_search import numbers, search_grid

Method = Literal["rtn", "mse", "gptq"]

_DAMPING = 0.01  # of the mean of the Hessian's diagonal, as in GPTQ
_SWEEPS = 2
# Weights that are worked on at once. Without Hessians rows are on their own: so few stay in the cache, and what is made
# on the way takes no memory to speak of. With them a bank's small experts go together, large ones one by one.
_ROWS_BATCH, _MATRICES_BATCH = 1 << 18, 1 << 24


def quantise(
    weight: Float32,
    bits: int,
    group: int | None,
    symmetric: bool,
    hessian: Float32 | None = None,
    method: Method = "rtn",
    name: str = "weight",
) -> IntWeight:
    """Choose scales, zero points and numbers for a weight; the same bytes for the same arguments.

    Args:
        weight: float32 [..., N, K].
        bits: 4 or 8.
        group: How many neighbours along K share a scale; None = all of a row.
        symmetric: Whether the zero point is fixed to 2^(bits-1).
        hessian: For "gptq": float32 [..., K, K], the mean of x x^T over inputs x (see `hessian`); leading dimensions
            like the weight's, or none.
        method: "rtn" rounds to a grid that spans the group; "mse" searches the grid with the least squared error of
            the weights; "gptq" brings down the error of the outputs: grids weighted by the inputs' size, GPTQ, then
            coordinate descent on numbers and scales.
        name: What the weight is called in errors.

    Raises:
        CheckpointError: The weight holds an infinite number or NaN.
    """
    _check_finite(weight, name)
    if method == "gptq" and hessian is None:
        raise InternalError("gptq needs a Hessian")
    *lead, rows, width = weight.shape
    size = group or width
    shape = (*lead, rows, -(-width // size))
    q = np.empty(weight.shape, np.uint8)
    scale, zero = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    moments = None
    if method == "gptq" and hessian is not None:
        moments = torch.from_numpy(hessian).expand(*lead, width, width).reshape(-1, width, width)
    matrices = weight.reshape(-1, 1 if moments is None else rows, width)
    for part in _batches(matrices.shape, _ROWS_BATCH if moments is None else _MATRICES_BATCH):
        if method == "rtn":
            found = _rounded(matrices[part], bits, group, symmetric)
        else:
            moment = None if moments is None else moments[part]
            found = _quantise(torch.from_numpy(matrices[part]), moment, bits, size, symmetric)
        for whole, piece in zip((q, scale, zero), found, strict=True):
            torch.from_numpy(whole).reshape(*matrices.shape[:2], -1)[part] = piece
    return IntWeight(q, scale, None if symmetric else zero)


def _check_finite(weight: Float32, name: str) -> None:
    finite = np.isfinite(weight)
    if not finite.all():
        place = ", ".join(map(str, np.argwhere(~finite)[0]))
        raise CheckpointError(f"{name}[{place}]", expected="a finite number", got=str(weight[~finite][0]))


def _rounded(weight: Float32, bits: int, group: int | None, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As `_quantise`, by plain rounding."""
    rounded = quantise_groups(weight, bits, group, symmetric)
    zero = np.full(rounded.scale.shape, middle(bits), np.uint8) if rounded.zero_point is None else rounded.zero_point
    return torch.from_numpy(rounded.q), torch.from_numpy(rounded.scale), torch.from_numpy(zero)


def _quantise(
    weight: Tensor, hessian: Tensor | None, bits: int, group: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, scales and zero points for [B, N, K] and Hessians [B, K, K]; without those by the weights' error."""
    width = weight.shape[-1]
    missing = -width % group
    weight = pad(weight, (0, missing))  # columns of zeros take no part
    groups = weight.unflatten(-1, (-1, group))
    if hessian is None:
        scale, zero = search_grid(groups, bits, symmetric)
        q = numbers(groups, scale[..., None], zero[..., None], bits).flatten(-2)
        return q[..., :width], scale, zero
    hessian = pad(hessian, (0, missing, 0, missing))  # a copy in any case
    _damp(hessian)
    importance = hessian.diagonal(dim1=-2, dim2=-1).unflatten(-1, (-1, group))[:, None]
    scale, zero = search_grid(groups, bits, symmetric, importance)
    q = gptq(weight, hessian, scale.repeat_interleave(group, -1), zero.repeat_interleave(group, -1), bits)
    q, scale = descend(weight, hessian, q, scale, zero, bits, _SWEEPS)
    return q[..., :width], scale, zero


def _damp(hessian: Tensor) -> None:
    """Add something to the diagonal, in place: inputs that calibration has not seen still count a little."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    # An expert without any token: all inputs count the same.
    diagonal += torch.where(mean > 0, mean * _DAMPING, 1.0)


def _batches(shape: Sequence[int], limit: int) -> Iterator[slice]:
    count, rows, width = shape
    step = max(1, limit // max(1, rows * width))
    yield from (slice(begin, begin + step) for begin in range(0, count, step))
