"""Requests to the toy model, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dsv3export.runtime.batching.batcher import Batcher
from dsv3export.runtime.batching.prefix_cache import PrefixCache
from dsv3export.runtime.batching.run import longest, run_requests
from dsv3export.runtime.batching.speculation import SpeculationStats
from dsv3export.runtime.generation import Piece, Request, prompt_logits
from dsv3export.runtime.sampling import Sampler, SamplingParams
from dsv3export.runtime.session import Session
from dsv3export.runtime.stopping import StopStrings
from dsv3export.runtime.text_stream import TextStream
from tests.runtime.toy_model import ToySession

VOCAB = 50


def request(
    prompt: list[int], new: int = 6, index: int = 0, eos: set[int] | None = None, logprobs: int | None = None,
    **params: Any,
) -> Request:  # fmt: skip
    sampler = Sampler(SamplingParams(**params), index)
    return Request(prompt, new, sampler, TextStream(None, StopStrings([])), frozenset(eos or ()), logprobs)


def by_recomputation(prompt: list[int], new: int, eos: set[int] | None = None) -> list[int]:
    """Greedy tokens, each from a whole pass over all before it."""
    session, ids = ToySession(VOCAB), list(prompt)
    for _ in range(new):
        ids.append(int(np.argmax(prompt_logits(session, ids, 1000)[-1])))
        if ids[-1] in (eos or ()):
            break
    return ids[len(prompt) :]


def tokens(pieces: Iterable[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def run_all(
    session: Session, requests: Sequence[Request], slots: int, prefill_chunk: int = 256,
    prefixes: PrefixCache | None = None, speculate: int = 0, stats: SpeculationStats | None = None,
) -> Iterator[tuple[int, Piece]]:  # fmt: skip
    """As an engine runs a list of prompts: with no more slots and room than they need."""
    slots, capacity = min(slots, len(requests)), longest(requests)
    return run_requests(Batcher(session, slots, capacity, prefill_chunk, prefixes, speculate, stats), requests)
