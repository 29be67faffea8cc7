"""Random tensors for checks of kernels: the same for the same name, and of the sizes that a model has."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


class Samples:
    """A source of random tensors whose state depends on `name` only."""

    def __init__(self, name: str) -> None:
        self._generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """float32, normally distributed."""
        return torch.randn(shape, generator=self._generator) * scale

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """float32 in [low, high)."""
        return torch.rand(shape, generator=self._generator) * (high - low) + low

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 in [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator)

    def distinct(self, rows: int, count: int, below: int) -> Tensor:
        """int64 [rows, count]: different numbers in each row, in random order."""
        return torch.rand((rows, below), generator=self._generator).argsort(dim=1)[:, :count].contiguous()

    def fp8_blocks(self, *shape: int) -> tuple[Tensor, Tensor]:
        """float8 e4m3 [.., N, K] and the scales of its blocks of 128 x 128, for weights of size 1 / sqrt(K)."""
        *lead, rows, inner = shape
        numbers = self.normal(*shape, scale=100.0).clamp(-448, 448).to(torch.float8_e4m3fn)
        size = 0.01 * inner**-0.5
        return numbers, self.uniform(0.5 * size, 2 * size, *lead, -(-rows // 128), -(-inner // 128))

    def packed(
        self, rows: tuple[int, ...], inner: int, bits: int, group: int, zero: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Numbers, scales and maybe zero points as `linear_int.dequantise` reads them, for weights of 1 / sqrt(K)."""
        groups, size = -(-inner // group), 2.0 ** (1 - bits) * inner**-0.5
        numbers = self.integers(0, 256, *rows, groups * group * bits // 8).to(torch.uint8)
        scale = self.uniform(0.5 * size, 2 * size, *rows, groups)
        if not zero:
            return numbers, scale, None
        low, high = (100, 156) if bits == 8 else (0, 256)
        return numbers, scale, self.integers(low, high, *rows, -(-groups * bits // 8)).to(torch.uint8)
