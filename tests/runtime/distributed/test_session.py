"""Ranks as threads: the toy model over several of them computes what it computes in one piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from dsv3export.engine.parallel import Layout
from dsv3export.runtime.distributed.follow import follow
from dsv3export.runtime.distributed.in_process import InProcessCommunicator, run_ranks
from dsv3export.runtime.distributed.load import has_drafts, load_worker, open_rank, parallel_of
from dsv3export.runtime.distributed.session import DistributedSession, Model
from dsv3export.runtime.latent_cache import LatentCache
from tests.runtime.toy_model import ToySession

T = TypeVar("T")
LAYOUTS = [Layout(1, 2, 1), Layout(2, 1, 1), Layout(2, 2, 1)]


def lead(engine: Path, work: Callable[[DistributedSession], T]) -> T:
    """Runs `work` at rank 0 of an engine whose other ranks follow, as threads."""
    world = parallel_of(open_rank(engine, 0)).layout.world

    def run(communicator: InProcessCommunicator) -> T | None:
        files = open_rank(engine, communicator.rank)
        worker = load_worker(files, communicator, 1)
        config = files.config
        if communicator.rank:
            follow(worker, communicator, config.hidden_size)
            return None
        model = Model("toy", config.vocab_size, config.hidden_size, has_drafts(worker))
        session = DistributedSession(worker, communicator, parallel_of(files).layout, model, lambda: None)
        try:
            return work(session)
        finally:
            session.close()

    result = run_ranks(world, run)[0]
    assert result is not None
    return result


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.describe)
def test_steps_of_ragged_batches(toy_ranks: Callable[[Layout], Path], layout: Layout) -> None:
    path = toy_ranks(layout)
    vocab = open_rank(path, 0).config.vocab_size

    def steps(session: DistributedSession | ToySession) -> list[np.ndarray]:
        drawn = np.random.default_rng(1)
        cache = LatentCache(session.cache_layout, 4, 96)
        results = []
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
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e-4)
