from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.bench import measure as measuring
from dsv3export.bench.measure import Case, Rate, measure
from dsv3export.errors import RequestError
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import IntArray, Logits


@pytest.fixture
def engine(toy_engine_path: Path) -> Engine:
    return Engine.load(toy_engine_path, threads=1, max_batch=4, prefill_chunk=8)


@pytest.fixture
def clock(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Steps take a second, and a tenth for each token; each measured round is a second slower than the one before."""
    now, session = [0.0], engine.session
    step = session.step
    monkeypatch.setattr(measuring, "perf_counter", lambda: now[0])

    def timed(ids: IntArray, start: IntArray, cache: LatentCache, slots: range, rows: IntArray) -> Logits:
        now[0] += 1.0 + 0.1 * ids.size
        return step(ids, start, cache, slots, rows)

    monkeypatch.setattr(session, "step", timed)
    return now


def test_rates_are_those_of_the_steps(engine: Engine, clock: list[float]) -> None:
    advanced: list[int] = []
    found = measure(engine, Case(2, 4, 6), repeats=3, advance=advanced.append)
    # Both prompts in one turn of two steps; five steps of two tokens.
    assert found.prefill == Rate(*[pytest.approx(8 / 2.8)] * 3)
    assert found.decode == Rate(*[pytest.approx(10 / (5 * 1.2))] * 3)
    assert advanced == [1] * 4 and found.acceptance is None


def test_tokens_that_come_while_others_prefill_do_not_count(engine: Engine, clock: list[float]) -> None:
    found = measure(engine, Case(3, 8, 4), repeats=1, advance=lambda amount: None)
    # A turn a prompt; the first sequence has its second token when the third gets its first one.
    assert found.prefill.median == pytest.approx(24 / (3 * 1.8 + 1.1))
    # Of nine tokens left that is one; then both decode, all three twice, and the third alone.
    assert found.decode.median == pytest.approx(8 / (1.2 + 1.3 + 1.2 + 1.1))


def test_rate() -> None:
    assert Rate.of([3.0, 1.0, 2.0]) == Rate(2.0, 1.0, 3.0)


def test_cases_that_do_not_fit_are_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="at least 2"):
        measure(engine, Case(1, 4, 1), 1, lambda amount: None)
    with pytest.raises(RequestError, match="1024"):
        measure(engine, Case(1, 4000, 4), 1, lambda amount: None)


def test_drafts_are_counted(tiny_engine: Path) -> None:
    engine = Engine.load(tiny_engine, threads=1)
    found = measure(engine, Case(1, 16, 12, drafts=1), repeats=1, advance=lambda amount: None)
    assert found.acceptance is not None and 0 <= found.acceptance <= 1
    assert engine.speculation.drafted > 0
