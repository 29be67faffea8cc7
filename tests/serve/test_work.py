from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3export.errors import BackendError
from dsv3export.runtime.async_engine import AsyncEngine, TooSlowError
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import IntArray, Logits
from dsv3export.serve.server_state import ServerSettings, ServerState
from dsv3export.serve.work import choices

Step = Callable[[IntArray, IntArray, LatentCache, range, IntArray], Logits]


@pytest.fixture
def state(toy_engine_path: Path) -> ServerState:
    engine = AsyncEngine.load(toy_engine_path, threads=1, max_batch=4, capacity=1000)
    return ServerState(engine, ServerSettings("toy"), None)


def run(state: ServerState, count: int, new: int, timeout: float, stop_after: int | None = None) -> int:
    """How many pieces came of `count` choices."""

    async def read() -> int:
        seen = 0
        _, account = state.account("/v1/completions", "cmpl")
        requests = [state.engine.engine.requests.make([1, 2], i, new, ignore_eos=True) for i in range(count)]
        async with state.engine:
            stream = choices(state.engine, requests, account, timeout)
            async for _ in stream:
                seen += 1
                if seen == stop_after:
                    await stream.aclose()
                    break
        return seen

    return asyncio.run(asyncio.wait_for(read(), 60))


def outcome(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [json.loads(each.message) for each in caplog.records if each.name == "dsv3export.serve"]
    found: str = record["outcome"]
    return found


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dsv3export.serve")


@pytest.mark.parametrize("count", [1, 3])
def test_all_pieces_come_and_are_counted(state: ServerState, count: int, caplog: pytest.LogCaptureFixture) -> None:
    assert run(state, count, 7, 60) == 7 * count
    assert outcome(caplog) == "ok"
    assert f"dsv3export_generated_tokens_total {7.0 * count}" in state.metrics.text().decode()


@pytest.mark.parametrize("count", [1, 3])
def test_a_reader_that_leaves_ends_the_work(state: ServerState, count: int, caplog: pytest.LogCaptureFixture) -> None:
    assert run(state, count, 900, 60, stop_after=4) == 4
    assert outcome(caplog) == "disconnected"
    assert state.engine.state.running == 0


@pytest.mark.parametrize("count", [1, 3])
def test_the_time_limit(state: ServerState, count: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TooSlowError, match=r"at most 0\.001 s"):
        run(state, count, 990, 0.001)
    assert outcome(caplog) == "timeout"
    assert state.engine.state.running == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_failing_engine(
    state: ServerState, count: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*step: object) -> Logits:
        raise BackendError("out of memory")

    monkeypatch.setattr(state.engine.engine.session, "step", fail)
    with pytest.raises(BackendError):
        run(state, count, 5, 60)
    assert outcome(caplog) == "engine_failed"
