"""How fast this machine reads its memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 5
_LAST_LEVEL_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def larger_than_caches() -> int:
    """Bytes: twice the largest cache, at least 1 GiB."""
    sizes = [path.read_text(encoding="ascii").strip() for path in _LAST_LEVEL_CACHE.glob("index*/size")]
    return max([2**30, *(2 * int(size[:-1]) * _UNITS[size[-1]] for size in sizes)])


def read_bandwidth(threads: int, array_bytes: int | None = None) -> float:
    """Bytes per second of reading an array once from end to end with that many threads; the best of several rounds.

    Others on the machine only ever slow it down. `array_bytes` is `larger_than_caches()` by default. Numpy's BLAS must
    not use threads of its own (OPENBLAS_NUM_THREADS=1) for this to be of `threads` threads.
    """
    size = array_bytes or larger_than_caches()
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return max(
            size / best_seconds(partial(_each, pool, kernel, parts)) for kernel in (_dot_with_itself, np.add.reduce)
        )


def best_seconds(action: Callable[[], Any]) -> float:
    """Wall time of the fastest of several rounds."""
    seconds = []
    for _ in range(_ROUNDS):
        started = perf_counter()
        action()
        seconds.append(perf_counter() - started)
    return min(seconds)


def _dot_with_itself(part: NDArray[np.float32]) -> np.float32:
    product: np.float32 = np.dot(part, part)
    return product


def _each(pool: ThreadPoolExecutor, kernel: Callable[..., Any], parts: list[NDArray[np.float32]]) -> None:
    for future in [pool.submit(kernel, part) for part in parts]:
        future.result()
