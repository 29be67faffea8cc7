from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.runtime.generation import Piece, Request, contiguous_runs, prompt_logits, run_requests
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.sampling import Sampler, SamplingParams
from dsv3export.runtime.session import IntArray, Logits
from dsv3export.runtime.stopping import StopStrings
from dsv3export.runtime.text_stream import TextStream
from tests.runtime.toy_model import ToySession

VOCAB = 50
PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=6)


def request(prompt: list[int], new: int = 6, index: int = 0, eos: set[int] | None = None, **params: Any) -> Request:
    sampler = Sampler(SamplingParams(**params), index)
    return Request(prompt, new, sampler, TextStream(None, StopStrings([])), frozenset(eos or ()))


def collect(steps: Any, count: int) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    for index, piece in steps:
        pieces[index].append(piece)
    return pieces


def by_recomputation(session: ToySession, prompt: list[int], new: int, eos: set[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(np.argmax(prompt_logits(session, ids, 1000)[-1])))
        if ids[-1] in eos:
            break
    return ids[len(prompt) :]


@settings(max_examples=30)
@given(PROMPTS, st.integers(1, 4), st.integers(1, 7), st.sets(st.integers(0, VOCAB - 1), max_size=10))
def test_a_ragged_batch_equals_recomputation(prompts: list[list[int]], slots: int, chunk: int, eos: set[int]) -> None:
    session = ToySession(VOCAB)
    requests = [request(prompt, new=4 + i, eos=eos) for i, prompt in enumerate(prompts)]
    results = collect(run_requests(session, requests, slots, chunk), len(prompts))
    for i, (prompt, pieces) in enumerate(zip(prompts, results, strict=True)):
        expected = by_recomputation(session, prompt, 4 + i, eos)
        assert [token for piece in pieces for token in piece.token_ids] == expected
        assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish_reason == ("stop" if expected[-1] in eos else "length")


def test_sampling_does_not_depend_on_the_batch() -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    make = [request(prompt, index=i, temperature=2.0, seed=3) for i, prompt in enumerate(prompts)]
    together = collect(run_requests(ToySession(VOCAB), make, 3), 3)
    for i, prompt in enumerate(prompts):
        alone = request(prompt, index=i, temperature=2.0, seed=3)
        assert collect(run_requests(ToySession(VOCAB), [alone], 1), 1)[0] == together[i]


def test_prefill_comes_in_chunks_and_wants_one_row_of_logits() -> None:
    session = ToySession(VOCAB)
    list(run_requests(session, [request([1, 2, 3, 4, 5], new=2)], 1, prefill_chunk=2))
    one = range(1)
    assert session.steps == [((1, 2), one, 0), ((1, 2), one, 0), ((1, 1), one, 1), ((1, 1), one, 1)]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_prompt_logits_come_for_every_token(chunk: int) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2]
    expected = np.concatenate([prompt_logits(ToySession(VOCAB), ids[: n + 1], 100)[-1:] for n in range(7)])
    np.testing.assert_allclose(prompt_logits(ToySession(VOCAB), ids, chunk), expected, atol=1e-5)


class Watched(ToySession):
    """Keeps the cache, to look at it from outside."""

    cache: LatentCache

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        self.cache = cache
        return super().step(input_ids, start, cache, slots, logit_rows)


def test_the_rows_of_a_finished_slot_stay_untouched() -> None:
    session = Watched(VOCAB)
    requests = [request([1, 2], new=9), request([3, 4], new=2), request([5, 6], new=9)]
    kept = None
    for index, piece in run_requests(session, requests, 3):
        if (index, piece.finish_reason) == (1, "length"):
            kept = session.cache.view(0, range(1, 2)).copy()
    assert kept is not None and np.array_equal(session.cache.view(0, range(1, 2)), kept)
    assert {tuple(slots) for _, slots, _ in session.steps[-6:]} == {(0,), (2,)}


def test_the_cache_is_as_large_as_the_requests_need() -> None:
    session = Watched(VOCAB)
    list(run_requests(session, [request([1] * 10, new=5), request([1], new=3)], 16))
    assert (session.cache.slots, session.cache.capacity) == (2, 15)


@pytest.mark.parametrize(
    ("slots", "runs"),
    [([], []), ([0, 1, 2], [range(3)]), ([0, 2, 3, 5], [range(1), range(2, 4), range(5, 6)])],
)
def test_contiguous_runs(slots: list[int], runs: list[range]) -> None:
    assert contiguous_runs(slots) == runs
