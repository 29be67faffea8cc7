"""The trained model over several ranks is the model: logits, tokens, drafts, and what goes over the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dsv3export.engine.parallel import Layout
from dsv3export.engine.reader import EngineFiles
from dsv3export.runtime.distributed.load import parallel_of
from dsv3export.runtime.distributed.session import DistributedSession
from dsv3export.runtime.distributed.worker import RankFigures
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import Logits
from tests.support.ranks import lead

LAYOUTS = [
    Layout(pp, tp, ep)
    for world in (2, 4)
    for pp in (1, 2, 4)
    for tp in (1, 2, 4)
    for ep in (1, 2, 4)
    if pp * tp * ep == world
]
TOLERANCE = 1e-4
# Ragged, and the last one long enough for micro-batches.
PROMPTS = [[5, 17, 99], [300], [int(token) for token in np.random.default_rng(0).integers(3, 2000, 70)]]
RankEngine = Callable[[Layout], Path]


@dataclass(frozen=True)
class Right:
    """What one process computes."""

    logits: Logits
    drafts: Logits
    greedy: list[list[int]]
    sampled: list[int]

    @classmethod
    def of(cls, engine: Engine) -> Right:
        greedy = [result.token_ids for result in engine.generate(PROMPTS, 8, ignore_eos=True)]
        sampled = engine.generate(PROMPTS[0], 8, temperature=0.8, seed=3).token_ids
        return cls(engine.logits(PROMPTS[2]), engine.draft_logits(PROMPTS[2][:20]), greedy, sampled)


@pytest.fixture(scope="module")
def right(tiny_engine: Path) -> Right:
    return Right.of(Engine.load(tiny_engine, threads=1))


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.describe)
def test_ranks_compute_what_one_process_does(rank_engine: RankEngine, right: Right, layout: Layout) -> None:
    path = rank_engine(layout)
    files = EngineFiles.open(path)

    def work(session: DistributedSession) -> None:
        mine = Right.of(Engine(files, session, max_batch=2))
        np.testing.assert_allclose(mine.logits, right.logits, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(mine.drafts, right.drafts, rtol=0, atol=TOLERANCE)
        assert (mine.greedy, mine.sampled) == (right.greedy, right.sampled)
        drafting = Engine(files, session, max_batch=2, speculate=2)
        assert [result.token_ids for result in drafting.generate(PROMPTS, 8, ignore_eos=True)] == right.greedy
        assert drafting.speculation.drafted > 0

    lead(path, work)


@pytest.mark.parametrize("speculate", [0, 2])
@pytest.mark.parametrize("layout", [Layout(2, 1, 1), Layout(1, 2, 1), Layout(2, 1, 2)], ids=Layout.describe)
def test_prompts_with_a_known_beginning_get_the_same_tokens(
    rank_engine: RankEngine, tiny_engine: Path, layout: Layout, speculate: int
) -> None:
    """Each rank copies its own rows: two whole blocks, a part of one, and of sequences that ran side by side."""
    path = rank_engine(layout)
    files = EngineFiles.open(path)
    known = [int(token) for token in np.random.default_rng(1).integers(3, 2000, 140)]
    turns = [[known, PROMPTS[2]], [[*known, 7, 8], [*known[:40], 9], PROMPTS[2]], [[*known, 7, 8, 9]]]

    def work(session: DistributedSession) -> tuple[list[list[list[int]]], int]:
        engine = Engine(files, session, max_batch=2, prefix_cache=1 << 22, speculate=speculate)
        results = [[one.token_ids for one in engine.generate(turn, 8, ignore_eos=True)] for turn in turns]
        assert engine.prefixes is not None
        return results, engine.prefixes.stats.found

    alone = Engine.load(tiny_engine, threads=1)
    tokens, found = lead(path, work)
    assert tokens == [[one.token_ids for one in alone.generate(turn, 8, ignore_eos=True)] for turn in turns]
    assert found >= 140 + 40 + 69 + 142


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.describe)
def test_the_wire_carries_what_the_plan_says(rank_engine: RankEngine, layout: Layout) -> None:
    path = rank_engine(layout)
    plans = parallel_of(EngineFiles.open(path)).ranks
    batch, length, rows = 3, 2, 4

    def measure(session: DistributedSession) -> tuple[list[RankFigures], list[RankFigures]]:
        cache = LatentCache(session.cache_layout, batch, 8)
        ids = np.ones((batch, length), np.int64)
        before = session.figures()
        session.step(ids, np.zeros(batch, np.int64), cache, range(batch), np.arange(rows))
        return before, session.figures()

    before, after = lead(path, measure)
    for plan, first, second in zip(plans, before, after, strict=True):
        expected = dict.fromkeys(("all_reduce", "gather", "send"), 0.0)
        for each in plan.traffic:
            expected[each.op] += float(each.sent_per_row) * (batch * length if each.row == "token" else rows)
        sent = {
            "all_reduce": second.all_reduce_bytes - first.all_reduce_bytes,
            "gather": second.gather_bytes - first.gather_bytes,
            "send": second.send_bytes - first.send_bytes,
        }
        assert sent == expected, plan
        tokens = batch * 8 * plan.cache_bytes_per_token
        assert second.cache_bytes == tokens
