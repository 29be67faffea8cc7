"""Random weights of 8 or 4 bits in groups, packed as MatMulNBits wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedWeights:
    """Numbers [N, K] in groups along K, and what the op gets of them.

    Attributes:
        numbers, zeros: int64 [N, K] and [N, G], unpacked.
        blocks, scale, zero_point: uint8 [N, G, group*bits/8], float32 [N, G], uint8 [N, Z] or None.
    """

    bits: int
    group: int
    numbers: NDArray[np.int64]
    zeros: NDArray[np.int64]
    blocks: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | None

    @property
    def values(self) -> NDArray[np.float64]:
        """(number - zero point) * scale, float64 [N, K]."""
        where = np.arange(self.numbers.shape[1]) // self.group
        values: NDArray[np.float64] = (self.numbers - self.zeros[:, where]) * self.scale.astype(np.float64)[:, where]
        return values

    def inputs(self) -> dict[str, NDArray[Any] | None]:
        """The op's weights by name."""
        return {"blocks": self.blocks, "scale": self.scale, "zero_point": self.zero_point}


def random_weights(
    generator: np.random.Generator, bits: int, group: int, columns: int, depth: int, zero_points: bool
) -> PackedWeights:
    """Numbers of the whole range; what fills up the last group is random too, for it must not matter.

    Scales are numbers that bfloat16 has where `depth` is odd, as kernels keep such in 16 bits.
    """
    groups = -(-depth // group)
    filled = generator.integers(0, 1 << bits, (columns, groups * group))
    zeros = (
        generator.integers(0, 1 << bits, (columns, groups))
        if zero_points
        else np.full((columns, groups), 1 << bits - 1)
    )
    scale = generator.uniform(0.001, 0.02, (columns, groups)).astype(np.float32)
    if depth % 2:
        scale = narrow(scale)
    blocks = _packed(filled, bits).reshape(columns, groups, group * bits // 8)
    return PackedWeights(
        bits, group, filled[:, :depth], zeros, blocks, scale, _packed(zeros, bits) if zero_points else None
    )


def narrow(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The next smaller scales that bfloat16 has."""
    return (scale.view(np.uint32) & 0xFFFF0000).view(np.float32)


def _packed(numbers: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return numbers.astype(np.uint8)
    even = np.pad(numbers, ((0, 0), (0, numbers.shape[1] % 2)))
    return (even[:, ::2] | even[:, 1::2] << 4).astype(np.uint8)
