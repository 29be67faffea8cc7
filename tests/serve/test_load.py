"""Many clients at once; the whole minute of it is benchmarks/serve_load.py."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.clients import Outcomes, press
from dsv3export.runtime.engine import Engine
from tests.serve.conftest import serving

PROMPTS = ["And it came to pass", "In the beginning", "And the LORD said unto Moses", "Now these are the names of " * 9]
LENGTHS = (6, 20, 48)


@pytest.fixture(scope="module")
def expected(tiny_engine: Path) -> Mapping[str, Mapping[int, str]]:
    """What one client alone is told."""
    engine = Engine.load(tiny_engine, threads=1)
    return {prompt: {new: engine.generate(prompt, new, ignore_eos=True).text for new in LENGTHS} for prompt in PROMPTS}


@pytest.mark.slow
def test_two_hundred_clients(tiny_engine: Path, expected: Mapping[str, Mapping[int, str]]) -> None:
    with serving(tiny_engine, "--slots", "32", "--quiet", "--context", "512") as running:
        server = psutil.Process(running.process.pid)
        asyncio.run(press(running.url, expected, clients=50, seconds=2, seed=1))
        before = server.memory_info().rss
        found = asyncio.run(press(running.url, expected, clients=200, seconds=10))
        grown = server.memory_info().rss - before
        health = httpx.get(f"{running.url}/health").json()
        code, said = running.end()
    assert found.wrong == []
    assert found.finished > 200 and found.left > 20
    assert health == {"status": "ok", "running": 0, "waiting": 0}
    assert grown < 60e6, f"{grown / 1e6:.0f} MB"
    assert (code, said) == (0, "")


def test_sigterm_finishes_what_runs(tiny_engine: Path) -> None:
    found: list[Outcomes] = []
    text = Engine.load(tiny_engine, threads=1).generate(PROMPTS[0], 400, ignore_eos=True).text
    expected = {PROMPTS[0]: {400: text}}
    with serving(tiny_engine, "--slots", "2", "--context", "512") as running:
        # Each of these asks once: it begins before the end and is answered after it.
        clients = threading.Thread(
            target=lambda: found.append(asyncio.run(press(running.url, expected, 6, seconds=0.01, leaving=0)))
        )
        clients.start()
        while clients.is_alive() and httpx.get(f"{running.url}/health").json()["waiting"] < 3:
            pass
        code, said = running.end(signal.SIGTERM)
        clients.join(60)
    assert code == 0
    assert found[0].wrong == [] and found[0].finished == 6
    assert {json.loads(line)["outcome"] for line in said.splitlines()} == {"ok"}
