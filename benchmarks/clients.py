"""Many clients at once, some of which hang up: what each got, and how long between tokens."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx


@dataclass
class Outcomes:
    """What clients saw. `gaps` are seconds between two events of a stream."""

    finished: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


async def _one(
    client: httpx.AsyncClient, prompt: str, expected: Mapping[int, str], leaves: bool, random_: random.Random,
    found: Outcomes,
) -> None:  # fmt: skip
    new = random_.choice(sorted(expected))
    body = {"prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True,
            "ignore_eos": True}  # fmt: skip
    stay = random_.randrange(1, new) if leaves else None
    text, ended, last = "", False, None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            found.wrong.append(f"status {response.status_code}: {(await response.aread())[:200]!r}")
            return
        events = 0
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            if line == "data: [DONE]":
                ended = True
                break
            now = time.monotonic()
            if last is not None:
                found.gaps.append(now - last)
            last = now
            events += 1
            text += json.loads(line[5:])["choices"][0]["text"]
            if events == stay:
                found.left += 1
                return
    if ended and text == expected[new]:
        found.finished += 1
    else:
        found.wrong.append(f"{'ended' if ended else 'cut'}: {text[:80]!r} is not {expected[new][:80]!r}")


async def press(
    url: str,
    expected: Mapping[str, Mapping[int, str]],
    clients: int,
    seconds: float,
    leaving: float = 0.2,
    seed: int = 0,
) -> Outcomes:
    """`clients` that ask once at least, and again and again for `seconds`.

    Args:
        leaving: The share of requests that is left in the middle.
        expected: Prompt -> number of new tokens -> the text that it must give.
    """
    found = Outcomes()
    random_ = random.Random(seed)
    prompts: Sequence[str] = sorted(expected)
    until = time.monotonic() + seconds

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            prompt = random_.choice(prompts)
            try:
                await _one(client, prompt, expected[prompt], random_.random() < leaving, random_, found)
            except httpx.HTTPError as error:
                found.wrong.append(repr(error))
            if time.monotonic() >= until:
                return

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    return found
