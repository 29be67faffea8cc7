"""What the machine can do at best: how fast it reads memory and multiplies matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MATRIX = 2048
_ROUNDS = 5
_LAST_LEVEL_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


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
    return Limits(_read(threads, size), _multiply(threads), size)


def larger_than_caches() -> int:
    """Bytes: twice the largest cache, at least 1 GiB."""
    sizes = [path.read_text(encoding="ascii").strip() for path in _LAST_LEVEL_CACHE.glob("index*/size")]
    return max([2**30, *(2 * int(size[:-1]) * _UNITS[size[-1]] for size in sizes)])


def _read(threads: int, size: int) -> float:
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(
            size / _best_seconds(partial(_each, pool, kernel, parts)) for kernel in (_dot_with_itself, np.add.reduce)
        )


def _dot_with_itself(part: NDArray[np.float32]) -> np.float32:
    product: np.float32 = np.dot(part, part)
    return product


def _each(pool: ThreadPoolExecutor, kernel: Callable[..., Any], parts: list[NDArray[np.float32]]) -> None:
    for future in [pool.submit(kernel, part) for part in parts]:
        future.result()


def _multiply(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    left, right = torch.ones(_MATRIX, _MATRIX), torch.ones(_MATRIX, _MATRIX)
    return 2 * _MATRIX**3 / _best_seconds(lambda: left @ right)


def _best_seconds(action: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        started = perf_counter()
        action()
        seconds.append(perf_counter() - started)
    return min(seconds)
