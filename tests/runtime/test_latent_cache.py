from __future__ import annotations

import numpy as np
import pytest

from dsv3export.errors import InternalError, ResourceError
from dsv3export.runtime.latent_cache import LatentCache


def test_holds_exactly_the_latents() -> None:
    cache = LatentCache(layers=4, slots=3, capacity=100, width=160)
    assert cache.elements == 4 * 3 * 100 * 160
    assert cache.lengths.tolist() == [0, 0, 0]
    assert cache.view(0, range(3)).dtype == np.float32


def test_a_view_is_contiguous_and_shares_memory() -> None:
    cache = LatentCache(layers=1, slots=4, capacity=5, width=6)
    view = cache.view(0, range(1, 3))
    view[:] = 1
    assert view.flags.c_contiguous
    assert cache.view(0, range(4)).sum(axis=(1, 2)).tolist() == [0, 30, 30, 0]


@pytest.mark.parametrize("slots", [range(0), range(2, 5), range(0, 4, 2), range(-1, 2)])
def test_other_ranges_are_refused(slots: range) -> None:
    with pytest.raises(InternalError, match="range"):
        LatentCache(layers=1, slots=4, capacity=5, width=6).view(0, slots)


@pytest.mark.parametrize("capacity", [2**40, 2**62])
def test_too_large_a_cache_is_a_resource_error(capacity: int) -> None:
    with pytest.raises(ResourceError, match="not enough memory for a latent cache of 16 x"):
        LatentCache(layers=61, slots=16, capacity=capacity, width=576)
