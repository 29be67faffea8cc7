"""What calibration keeps of a linear's inputs: the mean of x x^T, of which the error of its outputs is a function.

A routed expert sees few of the calibration text's tokens, fewer than it has inputs. Its own mean is then blended with
that over all tokens of the layer, as if it had seen K / 2 more of those: with many tokens of its own it keeps to them,
with few it follows the layer. (Tried on a trained model: with 128 tokens for 256 inputs this removes a third of the
divergence that the expert's own mean leaves, and with plenty of tokens it costs nothing.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from dsv3export.graphs.quantise.int_weight import Float32

_MAX_OTHER_TOKENS = 4096  # of other experts' tokens, for an expert's inner activations


class MomentSum:
    """The mean of x x^T over inputs that come in pieces.

    Args:
        width: K, the length of an input.
    """

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, width)
        self._tokens = 0

    def add(self, x: Float32) -> None:
        """More inputs: float32 [..., K]."""
        rows = torch.from_numpy(x).reshape(-1, self._sum.shape[0])
        self._sum.addmm_(rows.T, rows)
        self._tokens += rows.shape[0]

    def hessian(self) -> Float32:
        """float32 [K, K]; zero before the first input."""
        mean: Float32 = (self._sum / max(self._tokens, 1)).numpy()
        return mean


@dataclass(frozen=True)
class ExpertInputs:
    """What the routed experts of a layer were given during calibration.

    Args:
        x: float32 [T, D].
        ids: int64 [T, k], the chosen experts.
        weights: float32 [T, k]: an expert's error reaches the layer's output times this, so that a token counts by
            its square.
    """

    x: Float32
    ids: NDArray[np.int64]
    weights: Float32

    def hessian(self, expert: int) -> Float32:
        """For gate and up of an expert: float32 [D, D]."""
        rows, share = self._chosen(expert)
        return _blend(torch.from_numpy(self.x)[rows], share, self._overall)

    def inner_hessian(self, expert: int, gate: Float32, up: Float32) -> Float32:
        """For down of an expert with the given gate and up [I, D]: float32 [I, I]."""
        rows, share = self._chosen(expert)
        x = torch.from_numpy(self.x)
        others = x[:: -(-len(x) // _MAX_OTHER_TOKENS)]
        own, other = (
            silu(part @ torch.from_numpy(gate).T) * (part @ torch.from_numpy(up).T) for part in (x[rows], others)
        )
        return _blend(own, share, other.T @ other / len(other))

    @cached_property
    def _overall(self) -> Tensor:
        x = torch.from_numpy(self.x)
        return x.T @ x / len(x)

    def _chosen(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens of an expert, and how much each counts (1 in the mean)."""
        rows, choice = np.nonzero(self.ids == expert)
        share = torch.from_numpy(self.weights[rows, choice]).square()
        return torch.from_numpy(rows), share / share.mean().clamp_min(torch.finfo(torch.float32).tiny)


def _blend(x: Tensor, share: Tensor, overall: Tensor) -> Float32:
    """The mean over an expert's tokens x [T, K] and K / 2 tokens of the layer's mean."""
    prior = x.shape[1] / 2
    total = (x * share[:, None]).T @ x + overall * prior
    blended: Float32 = (total / (len(x) + prior)).numpy()
    return blended
