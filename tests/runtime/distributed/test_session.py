"""The toy model over ranks that are threads computes what it computes in one piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3export.engine.parallel import Layout
from dsv3export.errors import EngineError
from dsv3export.runtime.distributed.load import open_rank
from dsv3export.runtime.distributed.session import DistributedSession
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import Logits
from tests.runtime.toy_model import ToySession
from tests.support.ranks import lead

LAYOUTS = [Layout(1, 2, 1), Layout(2, 1, 1), Layout(2, 2, 1)]
ToyRanks = Callable[[Layout], Path]


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.describe)
def test_steps_of_ragged_batches(toy_ranks: ToyRanks, layout: Layout) -> None:
    path = toy_ranks(layout)
    vocab = open_rank(path, 0).config.vocab_size

    def steps(session: DistributedSession | ToySession) -> list[Logits]:
        drawn = np.random.default_rng(1)
        cache = LatentCache(session.cache_layout, 4, 96)
        results = []
        # the second is long enough to be cut into micro-batches
        for slots, length, starts in (
            (range(1, 4), 5, [0, 0, 0]),
            (range(1, 2), 80, [5]),
            (range(4), 2, [0, 85, 3, 5]),
        ):
            ids = drawn.integers(0, vocab, (len(slots), length))
            rows = drawn.permutation(len(slots) * length)[:7]
            results.append(session.step(ids, np.array(starts), cache, slots, rows))
        return results

    for mine, right in zip(lead(path, steps), steps(ToySession(vocab)), strict=True):
        # logits of up to 500, which float32 has to 3e-5
        np.testing.assert_allclose(mine, right, rtol=1e-6, atol=1e-4)


def test_steps_in_flight_have_their_own_results(toy_ranks: ToyRanks) -> None:
    path = toy_ranks(Layout(2, 1, 1))

    def steps(session: DistributedSession) -> None:
        cache, ids = LatentCache(session.cache_layout, 3, 8), np.array([[5], [6], [7]])
        right = session.step(ids, np.zeros(3, np.int64), cache, range(3), np.arange(3))
        begun = [
            session.begin_step(ids[i : i + 1], np.zeros(1, np.int64), cache, range(i, i + 1), np.zeros(1, np.int64))
            for i in range(3)
        ]
        for i in (2, 0, 1):
            np.testing.assert_array_equal(begun[i]()[0], right[i])

    lead(path, steps)


def test_caches_that_are_gone_are_freed_everywhere(toy_ranks: ToyRanks) -> None:
    def steps(session: DistributedSession) -> list[int]:
        ids, zero = np.array([[5]]), np.zeros(1, np.int64)
        sizes = []
        for slots in (4, 2):
            cache = LatentCache(session.cache_layout, slots, 16)
            session.step(ids, zero, cache, range(1), zero)
            sizes.append(session.figures()[1].cache_bytes)
            del cache
        return sizes

    before, after = lead(toy_ranks(Layout(2, 1, 1)), steps)
    assert before == 2 * after > 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.describe)
def test_rows_are_copied_at_every_rank(toy_ranks: ToyRanks, layout: Layout) -> None:
    """A sequence goes on from a copy of its rows, in a cache that no step has seen, as from the rows themselves."""
    drawn = np.random.default_rng(2)
    ids = drawn.integers(0, 50, (1, 40))

    def steps(session: DistributedSession) -> list[Logits]:
        zero, last = np.zeros(1, np.int64), np.zeros(1, np.int64)
        cache, pool = (LatentCache(session.cache_layout, 2, 64) for _ in range(2))
        whole = session.step(ids, zero, cache, range(1), np.array([39]))
        session.copy_rows(pool, 1, 3, cache, 0, range(30))
        fresh = LatentCache(session.cache_layout, 3, 48)
        session.copy_rows(fresh, 2, 0, pool, 1, range(3, 33))
        rest = session.step(ids[:, 30:], zero + 30, fresh, range(2, 3), last + 9)
        session.copy_rows(fresh, 1, 0, pool, 1, range(3, 32))  # a row less: the last one is zero
        wrong = session.step(ids[:, 30:], zero + 30, fresh, range(1, 2), last + 9)
        return [whole, rest, wrong]

    whole, rest, wrong = lead(toy_ranks(layout), steps)
    np.testing.assert_allclose(rest, whole, rtol=1e-6, atol=1e-4)
    assert np.abs(wrong - whole).max() > 1e-4


def test_an_engine_for_ranks_wants_ranks(toy_ranks: ToyRanks) -> None:
    with pytest.raises(EngineError, match=r"expected 2 ranks, got a single process\. Run it with --nproc 2"):
        Engine.load(toy_ranks(Layout(2, 1, 1)))
