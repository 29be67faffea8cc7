"""Banks of experts' matrices, of which some are made into numbers.

A bank's bytes are gathered as they are stored, and only what was gathered is made into numbers: TensorRT fuses both
with the product behind. Its Gather takes no float8 and no int4, so these banks are inputs of int8, the same bytes:
float8 is looked up in a table of the 256 numbers, a pair of 4-bit numbers is taken apart by arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.rows.values import in_groups
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK


class Bank(Protocol):
    """Matrices [E, N, K]."""

    def parts(self, emitter: Emitter, ids: ITensor) -> Sequence[ITensor]:
        """The matrices of experts `ids`, of any shape I, in float32: [*I, N, K], or parts of K that go with `split`."""
        ...

    def split(self, emitter: Emitter, x: ITensor) -> Sequence[ITensor]:
        """The columns of x [..., K] that each part is multiplied with."""
        ...


@dataclass(frozen=True)
class FloatBank:
    """Any float type: `weight` [E, N, K]."""

    weight: ITensor

    def parts(self, emitter: Emitter, ids: ITensor) -> Sequence[ITensor]:
        return [emitter.cast(emitter.gather(self.weight, ids, 0), emitter.float32)]

    def split(self, emitter: Emitter, x: ITensor) -> Sequence[ITensor]:
        return [x]


@dataclass(frozen=True)
class Fp8Bank:
    """float8 e4m3 in blocks of 128 x 128.

    Attributes:
        bits: int8 [E, N, K], the numbers' bits.
        scale: float32 [E, ceil(N/128), ceil(K/128)].
    """

    bits: ITensor
    scale: ITensor

    def parts(self, emitter: Emitter, ids: ITensor) -> Sequence[ITensor]:
        chosen = emitter.cast(emitter.gather(self.bits, ids, 0), emitter.trt.DataType.INT32)
        rank, (_, rows, width) = len(chosen.shape), self.bits.shape
        middle = emitter.constant(np.full([1] * rank, 128, np.int32))
        numbers = emitter.gather(emitter.constant(_e4m3_numbers()), emitter.add(chosen, middle), 0)
        scales = emitter.gather(self.scale, ids, 0)
        for axis, size in ((rank - 2, int(rows)), (rank - 1, int(width))):
            scales = emitter.gather(scales, emitter.constant(np.arange(size, dtype=np.int32) // BLOCK), axis)
        return [emitter.mul(numbers, scales)]

    def split(self, emitter: Emitter, x: ITensor) -> Sequence[ITensor]:
        return [x]


@dataclass(frozen=True)
class IntBank:
    """Integers of 8 or 4 bits in groups along K.

    Attributes:
        numbers: int8 [E, N, K * bits / 8]. Of 4 bits, byte j holds number 2j, unsigned, below number 2j + 1, signed.
        scale: float32 [E, N, G].
        offset: float32 [E, N, G], (zero point - middle) * scale, or None for zeros.
        bits: 8 or 4.
    """

    numbers: ITensor
    scale: ITensor
    offset: ITensor | None
    bits: int

    def parts(self, emitter: Emitter, ids: ITensor) -> Sequence[ITensor]:
        chosen = emitter.cast(emitter.gather(self.numbers, ids, 0), emitter.float32)
        numbers = [chosen] if self.bits == 8 else _nibbles(emitter, chosen)
        scale = self._column(emitter, self.scale, ids)
        offset = None if self.offset is None else self._column(emitter, self.offset, ids)
        return [self._scaled(emitter, part, scale, offset) for part in numbers]

    def split(self, emitter: Emitter, x: ITensor) -> Sequence[ITensor]:
        if self.bits == 8:
            return [x]
        pairs = in_groups(emitter, x, int(x.shape[-1]) // 2)
        lead = [emitter.dim(x, axis) for axis in range(len(x.shape) - 1)]
        half = [*lead, int(x.shape[-1]) // 2]
        start = [0] * len(half)
        return [emitter.reshape(emitter.slice(pairs, [*start, which], [*half, 1]), half) for which in (0, 1)]

    def _column(self, emitter: Emitter, of_groups: ITensor, ids: ITensor) -> ITensor:
        chosen = emitter.gather(of_groups, ids, 0)
        return emitter.unsqueeze(chosen, [len(chosen.shape)])

    def _scaled(self, emitter: Emitter, numbers: ITensor, scale: ITensor, offset: ITensor | None) -> ITensor:
        grouped = in_groups(emitter, numbers, int(self.scale.shape[2]))
        values = emitter.mul(grouped, scale)
        if offset is not None:
            values = emitter.sub(values, offset)
        sizes = [emitter.dim(numbers, axis) for axis in range(len(numbers.shape))]
        return emitter.reshape(values, sizes)


def _nibbles(emitter: Emitter, chosen: ITensor) -> list[ITensor]:
    """The lower and the upper numbers of bytes -128..127, as float32: both -8..7."""
    ones = [1] * len(chosen.shape)
    sixteen = emitter.constant(np.full(ones, 16, np.float32))
    upper = emitter.unary("FLOOR", emitter.div(chosen, sixteen))
    lower = emitter.sub(chosen, emitter.mul(upper, sixteen))
    return [emitter.sub(lower, emitter.constant(np.full(ones, 8, np.float32))), upper]


def _e4m3_numbers() -> NDArray[np.float32]:
    """The number of each pattern of bits, by the bits as int8 + 128."""
    numbers: NDArray[np.float32] = np.arange(-128, 128, dtype=np.int8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return numbers
