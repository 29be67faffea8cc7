from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.errors import BackendError, ResourceError
from dsv3export.runtime.batching.prefix_cache import BLOCK, PrefixCache, prefix_cache_for
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from tests.runtime.toy_model import ToySession

LAYOUT = CacheLayout(2, 3)
FP8 = CacheLayout(1, 4, "F8_E4M3", 2)


def cache_of(tokens: list[int], layout: CacheLayout = LAYOUT) -> LatentCache:
    """A slot whose row at a position says which tokens led to it."""
    cache = LatentCache(layout, 1, 512)
    for layer in range(layout.layers):
        for position in range(len(tokens)):
            cache.view(layer, range(1))[0, position] = sum(tokens[: position + 1]) % 97 + layer
            if layout.side_width:
                cache.side(layer, range(1))[0, position] = position % 7
    return cache


def room(blocks: int, layout: CacheLayout = LAYOUT) -> PrefixCache:
    return PrefixCache([layout], blocks * BLOCK * layout.bytes_per_token)


def fetched(prefixes: PrefixCache, tokens: list[int], layout: CacheLayout = LAYOUT) -> tuple[int, LatentCache]:
    cache = LatentCache(layout, 2, 512)
    return prefixes.fetch(tokens, 1, cache), cache


@pytest.mark.parametrize("layout", [LAYOUT, FP8, CacheLayout(2, 3, "BF16")])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_what_was_stored_comes_back(length: int, layout: CacheLayout) -> None:
    tokens = list(range(length))
    prefixes, source = room(8, layout), cache_of(tokens, layout)
    prefixes.store(tokens, 0, source)
    found, cache = fetched(prefixes, [*tokens, 99], layout)
    assert found == length
    for layer in range(layout.layers):
        got, expected = cache.view(layer, range(1, 2))[0, :length], source.view(layer, range(1))[0, :length]
        assert np.array_equal(got.astype(np.float32), expected.astype(np.float32))
    if layout.side_width:
        assert np.array_equal(cache.side(0, range(1, 2))[0, :length], source.side(0, range(1))[0, :length])
        assert cache.side(0, range(1)).dtype == ml_dtypes.bfloat16


def test_one_token_is_left_to_compute() -> None:
    tokens = list(range(2 * BLOCK))
    prefixes = room(4)
    prefixes.store(tokens, 0, cache_of(tokens))
    assert fetched(prefixes, tokens)[0] == 2 * BLOCK - 1
    assert fetched(prefixes, tokens[:1])[0] == 0


def test_part_of_a_block_serves_another_continuation() -> None:
    tokens = list(range(BLOCK + 20))
    prefixes = room(4)
    prefixes.store(tokens, 0, cache_of(tokens))
    other = [*tokens[: BLOCK + 7], 500, 501]
    found, cache = fetched(prefixes, other)
    assert found == BLOCK + 7
    cache.view(0, range(1, 2))[0, 3] = -1  # what the copy's owner writes reaches nobody else
    assert fetched(prefixes, other)[1].view(0, range(1, 2))[0, 3, 0] != -1


def test_a_longer_end_replaces_the_shorter_one() -> None:
    prefixes = room(8)
    for length in (5, 20, 40, BLOCK):
        prefixes.store(list(range(length)), 0, cache_of(list(range(length))))
    assert len(prefixes) == 1


def test_the_leaf_used_longest_ago_goes_first() -> None:
    prefixes = room(3)
    first, second = [1] * BLOCK, [2] * BLOCK
    prefixes.store(first, 0, cache_of(first))
    prefixes.store(second + [3] * BLOCK, 0, cache_of(second + [3] * BLOCK))
    fetched(prefixes, [*first, 0])
    third = [4] * BLOCK
    prefixes.store(third, 0, cache_of(third))  # the leaf behind `second` goes, not `second`, and not `first`
    assert [fetched(prefixes, [*each, 0])[0] for each in (first, second, third)] == [BLOCK] * 3
    assert fetched(prefixes, [*second, *[3] * BLOCK])[0] == BLOCK
    assert prefixes.stats.evicted == BLOCK


def test_a_sequence_larger_than_the_pool_keeps_its_beginning() -> None:
    tokens = list(range(5 * BLOCK))
    prefixes = room(2)
    prefixes.store(tokens, 0, cache_of(tokens))
    assert fetched(prefixes, tokens)[0] == 2 * BLOCK and len(prefixes) == 2
    prefixes.clear()
    assert len(prefixes) == 0 and fetched(prefixes, tokens)[0] == 0


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=25), st.integers(1, 6))
def test_never_another_sequence_s_rows(chains: list[list[int]], blocks: int) -> None:
    prefixes = room(blocks)
    for chain in chains:
        tokens = [number for number in chain for _ in range(BLOCK // 2 + number)]
        found, cache = fetched(prefixes, tokens)
        expected = cache_of(tokens)
        assert np.array_equal(cache.view(1, range(1, 2))[0, :found], expected.view(1, range(1))[0, :found])
        prefixes.store(tokens, 0, expected)
        assert len(prefixes) <= blocks


def test_too_little_memory_and_a_device_are_refused() -> None:
    with pytest.raises(ResourceError, match="block of 64 tokens"):
        PrefixCache([LAYOUT], 100)
    session = ToySession(5)
    assert prefix_cache_for(session, 0) is None
    session.cache_on_host = False
    with pytest.raises(BackendError, match="on the CPU"):
        prefix_cache_for(session, 1 << 20)
