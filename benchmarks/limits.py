"""What the machine can do at best: how fast it reads memory and multiplies matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsv3export.bench.bandwidth import best_seconds, larger_than_caches, read_bandwidth

_MATRIX = 2048


@dataclass(frozen=True)
class Limits:
    """The best of several rounds, as others on the machine only ever slow it down.

    Attributes:
        read_bytes_per_second: Reading an array of `array_bytes`, larger than all caches, once from end to end.
        float32_flop_per_second: A product of two square float32 matrices by torch's BLAS.
    """

    read_bytes_per_second: float
    float32_flop_per_second: float
    array_bytes: int

    @classmethod
    def best(cls, measured: Sequence[Limits]) -> Limits:
        """The best of each, as measured at several times."""
        return cls(
            max(limits.read_bytes_per_second for limits in measured),
            max(limits.float32_flop_per_second for limits in measured),
            measured[0].array_bytes,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_limits(threads: int, array_bytes: int | None = None) -> Limits:
    """Measure with `threads` threads; the process must have been started with OPENBLAS_NUM_THREADS=1."""
    size = array_bytes or larger_than_caches()
    return Limits(read_bandwidth(threads, size), _multiply(threads), size)


def _multiply(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    left, right = torch.ones(_MATRIX, _MATRIX), torch.ones(_MATRIX, _MATRIX)
    return 2 * _MATRIX**3 / best_seconds(lambda: left @ right)
