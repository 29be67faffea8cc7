"""Runs prompts through a session as a server would: several at once, prompts in chunks, then a token at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import Logits, Session

Part = Literal["logits", "greedy"]


class Batching(NamedTuple):
    """How many sequences are computed at once, and how many tokens of a prompt."""

    slots: int = 8
    chunk: int = 256


class Rows(NamedTuple):
    """Logits [n, V].

    Those of the part ``logits`` come after the prompt's tokens from `start` on; those of ``greedy`` predict the
    continuation's token `start`.
    """

    prompt: int
    part: Part
    start: int
    logits: Logits


def run_prompts(
    session: Session,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    follow: Callable[[int, int, Logits], int],
    batching: Batching | None = None,
) -> Iterator[Rows]:
    """Everything that a session computes for some prompts and their continuations.

    Prompts share a cache: when those of the first slots are done, the next ones take their places. The sequences of all
    slots take their new tokens together.

    Args:
        new_tokens: Rows of the part ``greedy`` of each prompt.
        follow: (prompt, step, its logits [V]) -> the token that continues the sequence there.

    Memory: the logits of one chunk.
    """
    slots, chunk = batching or Batching()
    slots = min(slots, len(prompts))
    capacity = max(len(ids) for ids in prompts) + new_tokens
    cache = LatentCache(session.cache_layout, slots, capacity)
    for first in range(0, len(prompts), slots):
        numbers = range(first, min(first + slots, len(prompts)))
        last: list[Logits] = []
        for slot, prompt in enumerate(numbers):
            for rows in _prefill(session, cache, slot, prompt, prompts[prompt], chunk):
                yield rows
            last.append(rows.logits[-1])
        yield from _continue(session, cache, numbers, last, new_tokens, follow)


def _prefill(
    session: Session, cache: LatentCache, slot: int, prompt: int, ids: Sequence[int], chunk: int
) -> Iterator[Rows]:
    for start in range(0, len(ids), chunk):
        part = np.array([ids[start : start + chunk]], np.int64)
        place = range(slot, slot + 1)
        yield Rows(
            prompt, "logits", start,
            session.step(part, np.array([start]), cache, place, np.arange(part.shape[1])),
        )  # fmt: skip
    cache.lengths[slot] = len(ids)


def _continue(
    session: Session,
    cache: LatentCache,
    numbers: range,
    last: Sequence[Logits],
    new_tokens: int,
    follow: Callable[[int, int, Logits], int],
) -> Iterator[Rows]:
    for step in range(new_tokens):
        ids = [follow(prompt, step, logits) for prompt, logits in zip(numbers, last, strict=True)]
        for prompt, logits in zip(numbers, last, strict=True):
            yield Rows(prompt, "greedy", step, logits[None])
        if step + 1 == new_tokens:
            return
        lengths = cache.lengths[: len(ids)]
        column = np.array(ids, np.int64)[:, None]
        logits = session.step(column, lengths.copy(), cache, range(len(ids)), np.arange(len(ids)))
        lengths += 1
        last = list(logits)
