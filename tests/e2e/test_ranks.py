"""The trained model over several ranks is the model: logits, tokens, drafts, and what goes over the wire."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dsv3export.engine.parallel import Layout
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.distributed.load import parallel_of
from dsv3export.runtime.distributed.session import DistributedSession
from dsv3export.runtime.distributed.worker import RankFigures
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.latent_cache import LatentCache
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
PROMPTS = [[5, 17, 99], [300], [int(token) for token in np.random.default_rng(0).integers(3, 2000, 150)]]
RankEngine = Callable[[Layout], Path]


@pytest.fixture(scope="session")
def rank_engine(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> RankEngine:
    folder = tmp_path_factory.mktemp("ranks")

    @cache
    def built(layout: Layout) -> Path:
        out = folder / layout.describe().replace(" ", "")
        build_engine(tiny_fp8, out, layout=layout)
        return out

    return built


@pytest.fixture(scope="module")
def single(tiny_engine: Path) -> Engine:
    return Engine.load(tiny_engine, threads=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=Layout.describe)
def test_ranks_compute_what_one_process_does(rank_engine: RankEngine, single: Engine, layout: Layout) -> None:
    path = rank_engine(layout)
    files = EngineFiles.open(path)

    def work(session: DistributedSession) -> None:
        engine = Engine(files, session, max_batch=2)
        np.testing.assert_allclose(engine.logits(PROMPTS[2]), single.logits(PROMPTS[2]), rtol=0, atol=TOLERANCE)
        drafts, right = engine.draft_logits(PROMPTS[2][:40]), single.draft_logits(PROMPTS[2][:40])
        np.testing.assert_allclose(drafts, right, rtol=0, atol=TOLERANCE)
        sampled = [each.generate(PROMPTS[0], 8, temperature=0.8, seed=3).token_ids for each in (engine, single)]
        assert sampled[0] == sampled[1]
        greedy = [result.token_ids for result in single.generate(PROMPTS, 12, ignore_eos=True)]
        for speculate in (0, 2):
            engine = Engine(files, session, max_batch=2, speculate=speculate)
            assert [result.token_ids for result in engine.generate(PROMPTS, 12, ignore_eos=True)] == greedy
            assert (engine.speculation.drafted > 0) == (speculate > 0)

    lead(path, work)


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
        expected = {op: 0.0 for op in ("all_reduce", "gather", "send")}
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
