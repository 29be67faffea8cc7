"""What a device was seen to do at best, in the same run: copying memory, and multiplying large matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.gpu.timing import Timer

_COPIED = 2 << 30
_SIDE = 8192


@dataclass(frozen=True)
class Limits:
    """Bytes/s of a copy, reading and writing counted, and FLOP/s of products by type; NaN where nothing is timed."""

    bandwidth: float
    rates: dict[str, float] = field(default_factory=dict)


def measured_limits(timer: Timer, device: torch.device, side: int = _SIDE, copied: int = _COPIED) -> Limits:
    """Copies `copied` bytes, and multiplies matrices of `side` x `side` in bfloat16 and, where it can, float8."""
    rates = {name: _rate(timer, product, side) for name, product in _products(device, side).items()}
    return Limits(_bandwidth(timer, device, copied), {name: rate for name, rate in rates.items() if rate is not None})


def _bandwidth(timer: Timer, device: torch.device, copied: int) -> float:
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * copied / (timer(lambda _: target.copy_(source), 1).microseconds * 1e-6)


def _rate(timer: Timer, product: Callable[[], Tensor], side: int) -> float | None:
    """None where the device has no such product."""
    try:
        return 2 * side**3 / (timer(lambda _: product(), 1).microseconds * 1e-6)
    except (RuntimeError, NotImplementedError):
        return None


def _products(device: torch.device, side: int) -> dict[str, Callable[[], Tensor]]:
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    products: dict[str, Callable[[], Tensor]] = {"bf16": lambda: a @ b.T}
    one = torch.ones((), device=device)
    eighth_a, eighth_b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    products["fp8"] = lambda: torch._scaled_mm(eighth_a, eighth_b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return products
