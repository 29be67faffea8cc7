from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.runtime.batching.prefix_cache import BLOCK, PrefixCache
from dsv3export.runtime.generation import Piece
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import IntArray, Logits
from tests.runtime.batching.requests import VOCAB, by_recomputation, request, run_all, tokens
from tests.runtime.toy_model import ToySession

PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=6)


def collect(steps: Any, count: int) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    for index, piece in steps:
        pieces[index].append(piece)
    return pieces


@settings(max_examples=30)
@given(PROMPTS, st.integers(1, 4), st.integers(1, 7), st.sets(st.integers(0, VOCAB - 1), max_size=10), st.booleans())
def test_a_ragged_batch_equals_recomputation(
    prompts: list[list[int]], slots: int, chunk: int, eos: set[int], reuse: bool
) -> None:
    session = ToySession(VOCAB)
    prefixes = PrefixCache([session.cache_layout], 4 * BLOCK * session.cache_layout.bytes_per_token) if reuse else None
    requests = [request(prompt, new=4 + i, eos=eos) for i, prompt in enumerate(prompts)]
    results = collect(run_all(session, requests, slots, chunk, prefixes), len(prompts))
    for i, (prompt, pieces) in enumerate(zip(prompts, results, strict=True)):
        expected = by_recomputation(prompt, 4 + i, eos)
        assert tokens(pieces) == expected
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish_reason == ("stop" if expected[-1] in eos else "length")


def test_sampling_does_not_depend_on_the_batch() -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    make = [request(prompt, index=i, temperature=2.0, seed=3) for i, prompt in enumerate(prompts)]
    together = collect(run_all(ToySession(VOCAB), make, 3), 3)
    for i, prompt in enumerate(prompts):
        alone = request(prompt, index=i, temperature=2.0, seed=3)
        assert collect(run_all(ToySession(VOCAB), [alone], 1), 1)[0] == together[i]


def test_prefill_comes_in_chunks_and_wants_one_row_of_logits() -> None:
    session = ToySession(VOCAB)
    list(run_all(session, [request([1, 2, 3, 4, 5], new=2)], 1, prefill_chunk=2))
    one = range(1)
    assert session.steps == [((1, 2), one, 0), ((1, 2), one, 0), ((1, 1), one, 1), ((1, 1), one, 1)]


class Watched(ToySession):
    """Keeps the cache, to look at it from outside."""

    cache: LatentCache

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        self.cache = cache
        return super().step(input_ids, start, cache, slots, logit_rows)


def test_the_cache_is_as_large_as_the_requests_need() -> None:
    session = Watched(VOCAB)
    list(run_all(session, [request([1] * 10, new=5), request([1], new=3)], 16))
    assert (session.cache.slots, session.cache.capacity) == (2, 15)


def test_logprobs_are_those_of_the_logits() -> None:
    ((_, piece),) = run_all(ToySession(VOCAB), [request([1, 2], new=1, logprobs=3)], 1)
    assert piece.logprobs is not None
    (found,) = piece.logprobs
    assert found.token_id == piece.token_ids[0] == found.top[0][0]
    assert found.logprob == found.top[0][1] and len(found.top) == 3
    assert np.all(np.diff([value for _, value in found.top]) <= 0)
