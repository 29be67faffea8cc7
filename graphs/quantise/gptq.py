"""GPTQ: columns are rounded one after another, and each one's error is made up for in those that follow.

Sources: Frantar et al., "GPTQ" (2022), algorithm 1, with the columns of the largest inputs first; scales are searched
beforehand, weighted by the size of the inputs, so that groups stay contiguous whatever the order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.errors import InternalError
from dsv3export.graphs.quantise.scale_search import numbers

_MORE_DAMPING = (0.0, 0.1, 1.0)
_LAZY_COLUMNS = 128  # errors within so many columns are passed on at once, to the rest by one product


def gptq(weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Numbers that bring ``(W - value) H (W - value)^T`` down, for a given grid.

    Args:
        weight: float32 [..., N, K].
        hessian: float32 [..., K, K], positive definite.
        scale, zero: float32 [..., N, K], each column's.
        bits: 4 or 8.

    Returns:
        float32 [..., N, K], whole numbers in 0..2^bits - 1.
    """
    order = hessian.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    columns = order[..., None, :].expand_as(weight)
    rest, scale, zero = (each.gather(-1, columns) for each in (weight, scale, zero))
    factor = _inverse_factor(_reordered(hessian, order))
    q = torch.empty_like(rest)
    width = rest.shape[-1]
    for begin in range(0, width, _LAZY_COLUMNS):
        part = slice(begin, min(begin + _LAZY_COLUMNS, width))
        near = factor[..., part, part]
        block = rest[..., part].clone()
        errors = torch.empty_like(block)
        for i in range(block.shape[-1]):
            column, step, middle = block[..., i], scale[..., begin + i], zero[..., begin + i]
            number = numbers(column, step, middle, bits)
            q[..., begin + i] = number
            errors[..., i] = (column - (number - middle) * step) / near[..., i, i, None]
            block[..., i + 1 :] -= errors[..., i, None] * near[..., None, i, i + 1 :]
        rest[..., part.stop :] -= errors @ factor[..., part, part.stop :]
    return torch.empty_like(q).scatter_(-1, columns, q)


def _reordered(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of [..., K, K] in the given order [..., K]."""
    rows = matrix.gather(-2, order[..., :, None].expand_as(matrix))
    return rows.gather(-1, order[..., None, :].expand_as(matrix))


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse; what float32 cannot factorise is damped further."""
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    for damping in _MORE_DAMPING:
        damped = hessian.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(mean * damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed.any():
            continue
        # One matrix at a time: of a wide layer each takes a gigabyte.
        torch.cholesky_inverse(lower, out=damped)
        factor, failed = torch.linalg.cholesky_ex(damped, upper=True)
        if not failed.any():
            upper: Tensor = factor
            return upper
    raise InternalError("the mean of x x^T over the calibration inputs has no inverse")
