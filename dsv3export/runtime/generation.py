"""Runs generation requests over a session: chunked prefill, ragged batch, one token at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.sampling import Sampler
from dsv3export.runtime.session import IntArray, Logits, Session
from dsv3export.runtime.text_stream import TextStream

FinishReason = Literal["stop", "length"]
PREFILL_CHUNK = 256


@dataclass(frozen=True)
class Piece:
    """What one generated token adds: its id and the text that may be shown now (empty while text is held back).

    The last piece of a request has a `finish_reason`: "stop" (end-of-sequence token or stop string) or "length".
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class GenerationResult:
    """A finished request.

    `token_ids` are the new tokens only, a final end-of-sequence token included; `text` is their text without special
    tokens, cut before a stop string.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_token_ids: list[int]


@dataclass(frozen=True)
class Request:
    """One checked request; prompt and new tokens together fit into the context."""

    prompt: list[int]
    max_new_tokens: int
    sampler: Sampler
    text: TextStream
    eos_ids: frozenset[int]


@dataclass
class _Running:
    """A request that occupies a slot; `last` is its newest token, which is not in the cache yet."""

    index: int
    request: Request
    generated: int = 0
    last: int = -1

    def take(self, logits: Logits) -> Piece:
        """Chooses the next token from float32[vocab]."""
        request = self.request
        self.last = request.sampler.sample(logits)
        self.generated += 1
        ends = self.last in request.eos_ids
        text = "" if ends else request.text.add(self.last)
        reason: FinishReason | None = None
        if ends or request.text.stopped:
            reason = "stop"
        elif self.generated == request.max_new_tokens:
            reason = "length"
        if reason:
            text += request.text.finish()
        return Piece(text, [self.last], reason)


def run_requests(
    session: Session, requests: Sequence[Request], max_slots: int, prefill_chunk: int = PREFILL_CHUNK
) -> Iterator[tuple[int, Piece]]:
    """Generates for all requests, `max_slots` at a time; yields (index of the request, piece) as they come.

    A free slot is given to the next waiting request at once. Slots without a request are never stepped over, so
    what lies in their part of the cache stays untouched.
    """
    waiting = deque(_Running(index, request) for index, request in enumerate(requests))
    running: dict[int, _Running] = {}
    slots = min(max_slots, len(requests))
    capacity = max(len(request.prompt) + request.max_new_tokens for request in requests)
    cache = LatentCache(session.cache_layout, slots, capacity)
    while waiting or running:
        for slot in range(slots):
            while waiting and slot not in running:
                state = waiting.popleft()
                piece = state.take(_prefill(session, cache, slot, state.request.prompt, prefill_chunk))
                if piece.finish_reason is None:
                    running[slot] = state
                yield state.index, piece
        for run in contiguous_runs(sorted(running)):
            for slot, logits in zip(run, _decode(session, cache, run, running), strict=True):
                state = running[slot]
                piece = state.take(logits)
                if piece.finish_reason is not None:
                    del running[slot]
                yield state.index, piece


def prompt_logits(session: Session, token_ids: Sequence[int], prefill_chunk: int = PREFILL_CHUNK) -> Logits:
    """Logits after every token, float32[len(token_ids), vocab]."""
    cache = LatentCache(session.cache_layout, 1, len(token_ids))
    result = np.empty((len(token_ids), session.vocab_size), np.float32)
    for start in range(0, len(token_ids), prefill_chunk):
        chunk = token_ids[start : start + prefill_chunk]
        result[start : start + len(chunk)] = _step_slot(session, cache, 0, chunk, np.arange(len(chunk)))
    return result


def contiguous_runs(slots: Sequence[int]) -> list[range]:
    """Ascending slot numbers as ranges without gaps: [0, 1, 3] -> [range(0, 2), range(3, 4)]."""
    runs: list[range] = []
    for slot in slots:
        if runs and runs[-1].stop == slot:
            runs[-1] = range(runs[-1].start, slot + 1)
        else:
            runs.append(range(slot, slot + 1))
    return runs


def _prefill(session: Session, cache: LatentCache, slot: int, prompt: Sequence[int], chunk: int) -> Logits:
    """Fills a slot with a prompt; the logits after its last token, float32[vocab]."""
    cache.lengths[slot] = 0
    logits: Logits = np.empty((0, session.vocab_size), np.float32)
    for start in range(0, len(prompt), chunk):
        ids = prompt[start : start + chunk]
        is_last = start + chunk >= len(prompt)
        # only the last token's logits matter: the head is the widest matrix of the model
        rows = np.array([len(ids) - 1] if is_last else [], np.int64)
        logits = _step_slot(session, cache, slot, ids, rows)
    last: Logits = logits[0]
    return last


def _step_slot(session: Session, cache: LatentCache, slot: int, ids: Sequence[int], rows: IntArray) -> Logits:
    slots = range(slot, slot + 1)
    start = cache.lengths[slot : slot + 1].copy()
    logits = session.step(np.array([ids], np.int64), start, cache, slots, rows)
    cache.lengths[slot] += len(ids)
    return logits


def _decode(session: Session, cache: LatentCache, slots: range, running: dict[int, _Running]) -> Logits:
    """One token for each slot of a run; logits float32[len(slots), vocab]."""
    ids = np.array([[running[slot].last] for slot in slots], np.int64)
    start = cache.lengths[slots.start : slots.stop].copy()
    logits = session.step(ids, start, cache, slots, np.arange(len(slots)))
    cache.lengths[slots.start : slots.stop] += 1
    return logits
