"""What a row of the table of layers is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.graphs.tensorrt.small_network import Define, Given


@dataclass(frozen=True)
class Case:
    """`expected` are the outputs, exact unless `tolerance` is given (relative to the largest)."""

    name: str
    inputs: Sequence[Given]
    define: Define
    expected: Callable[..., Sequence[Tensor]]
    tolerance: float = 0.0


def floats(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(high: int, *shape: int, seed: int = 0, low: int = 0, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def out(layer: Any) -> list[Any]:
    return [layer.get_output(0)]


def assigned(layer: Any, **attributes: Any) -> list[Any]:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return out(layer)


def both(layer: Any) -> list[Any]:
    return [layer.get_output(0), layer.get_output(1)]
