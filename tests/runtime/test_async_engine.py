from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dsv3export.errors import RequestError
from dsv3export.runtime.async_engine import AsyncEngine
from dsv3export.runtime.batching.service import BusyError, ClosedError
from dsv3export.runtime.engine import Engine

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]


@pytest.fixture
def loaded(toy_engine_path: Path) -> AsyncEngine:
    return AsyncEngine.load(toy_engine_path, threads=1, max_batch=2, capacity=1000, max_waiting=4, prefix_cache=1 << 20)


def test_many_callers_get_what_a_run_alone_gives(loaded: AsyncEngine, toy_engine: Engine) -> None:
    async def ask() -> list[list[int]]:
        async with loaded as engine:
            results = await asyncio.gather(*(engine.generate(prompt, 9, ignore_eos=True) for prompt in PROMPTS))
            return [result.token_ids for result in results]

    assert asyncio.run(ask()) == [toy_engine.generate(prompt, 9, ignore_eos=True).token_ids for prompt in PROMPTS]


def test_a_caller_that_stops_early_frees_its_slot(loaded: AsyncEngine) -> None:
    async def ask() -> None:
        async with loaded as engine:
            stream = engine.stream([1, 2], 990, ignore_eos=True)
            await anext(stream)
            assert engine.state.running == 1
            await stream.aclose()
            task = asyncio.create_task(engine.generate([3, 4], 990, ignore_eos=True))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while engine.state.running:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_bad_requests_and_too_many_are_refused_at_once(loaded: AsyncEngine) -> None:
    async def ask() -> None:
        async with loaded as engine:
            with pytest.raises(RequestError, match="temperature"):
                engine.stream([1], temperature=-1)
            with pytest.raises(RequestError, match="at most 1000 tokens"):
                await engine.generate([1] * 600, 500)
            streams = [engine.stream([1], 900, ignore_eos=True) for _ in range(20)]
            tasks = [asyncio.create_task(anext(stream)) for stream in streams]
            done, _ = await asyncio.wait(tasks)
            assert any(isinstance(task.exception(), BusyError) for task in done)
            for stream in streams:
                await stream.aclose()
        with pytest.raises(ClosedError):
            await engine.generate([1], 1)

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_closing_finishes_what_runs_or_ends_it(loaded: AsyncEngine) -> None:
    async def ask() -> None:
        task = asyncio.create_task(loaded.generate([1], 20, ignore_eos=True))
        await asyncio.sleep(0)
        assert await loaded.close(60)
        assert len((await task).token_ids) == 20

    asyncio.run(asyncio.wait_for(ask(), 60))
