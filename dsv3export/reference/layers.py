"""The two parameterised building blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv3export.plugins.linear.op import linear


class Linear(nn.Module):
    """A bias-free projection through the dsv3::linear op, so that a pass can choose its precision."""

    weight: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = linear(x, self.weight)
        return y

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = super().__call__(x)
        return out


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    weight: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = super().__call__(x)
        return out
