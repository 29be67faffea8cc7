from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.errors import BackendError, RequestError
from dsv3export.runtime.batching.batcher import Batcher
from dsv3export.runtime.batching.prefix_cache import BLOCK, PrefixCache
from dsv3export.runtime.batching.speculation import SpeculationStats, checked_drafts
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import Hidden, IntArray, Logits
from tests.runtime.batching.requests import VOCAB, by_recomputation, request, run_all, tokens
from tests.runtime.toy_model import ToyDraftingSession, ToySession

PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=5)


def drafts_from_scratch(known: list[int], count: int) -> list[int]:
    """What the MTP layer drafts behind `known`, computed anew."""
    session = ToyDraftingSession(VOCAB)
    cache, own = LatentCache(session.cache_layout, 1, 99), LatentCache(session.draft_cache_layout, 1, 99)
    ids, zero, none = np.array([known]), np.zeros(1, np.int64), np.zeros(0, np.int64)
    _, hidden = session.step_hidden(ids[:, :-1], zero, cache, range(1), none)
    last = np.array([len(known) - 2])
    logits, hidden = session.draft(hidden, ids[:, 1:], zero, own, range(1), last)
    drafts = [int(logits[0].argmax())]
    hidden = hidden[:, -1:]
    for place in range(1, count):
        start = np.array([len(known) - 2 + place])
        logits, hidden = session.draft(hidden, np.array([drafts[-1:]]), start, own, range(1), zero)
        drafts.append(int(logits[0].argmax()))
    return drafts


def simulated(prompt: list[int], new: int, count: int) -> SpeculationStats:
    """Drafted and accepted tokens of a greedy run."""
    stats, answer, done = SpeculationStats(), by_recomputation(prompt, new), 1
    while done < new:
        drafts = drafts_from_scratch(prompt + answer[:done], count)[: min(count, new - done - 1)]
        right = 0
        while right < len(drafts) and drafts[right] == answer[done + right]:
            right += 1
        stats.drafted += len(drafts)
        stats.accepted += right
        done += right + 1
    return stats


@settings(max_examples=40)
@given(PROMPTS, st.integers(1, 3), st.integers(1, 7), st.integers(1, 4), st.sets(st.integers(0, VOCAB - 1), max_size=6))
def test_greedy_tokens_stay_the_same(
    prompts: list[list[int]], slots: int, chunk: int, count: int, eos: set[int]
) -> None:
    session = ToyDraftingSession(VOCAB)
    requests = [request(prompt, new=3 + 4 * i, eos=eos) for i, prompt in enumerate(prompts)]
    found: dict[int, list[int]] = defaultdict(list)
    for index, piece in run_all(session, requests, slots, chunk, speculate=count):
        found[index] += piece.token_ids
    for i, prompt in enumerate(prompts):
        assert found[i] == by_recomputation(prompt, 3 + 4 * i, eos)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("chunk", [2, 100])
def test_drafts_see_all_true_pairs_and_no_others(count: int, chunk: int) -> None:
    prompts = [[1, 2, 3, 4, 5], [7], [9, 9, 8]]
    stats = SpeculationStats()
    requests = [request(prompt, new=30) for prompt in prompts]
    list(run_all(ToyDraftingSession(VOCAB), requests, 2, chunk, speculate=count, stats=stats))
    expected = [simulated(prompt, 30, count) for prompt in prompts]
    assert stats.drafted == sum(each.drafted for each in expected)
    assert stats.accepted == sum(each.accepted for each in expected) > 0
    assert stats.rate == stats.accepted / stats.drafted


def test_penalties_count_only_what_was_accepted() -> None:
    texts = []
    for speculate in (0, 2):
        asked = [request([1, 2, 3], new=24, frequency_penalty=0.7, presence_penalty=0.4)]
        pieces = run_all(ToyDraftingSession(VOCAB, 0.5), asked, 1, speculate=speculate)
        texts.append([token for _, piece in pieces for token in piece.token_ids])
    assert texts[0] == texts[1]


def test_steps_become_fewer() -> None:
    session = ToyDraftingSession(VOCAB)
    stats = SpeculationStats()
    list(run_all(session, [request([1, 2, 3], new=40)], 1, speculate=2, stats=stats))
    assert len(session.steps) == 1 + 39 - stats.accepted


def test_a_reused_prefix_gives_the_same_drafts() -> None:
    session = ToyDraftingSession(VOCAB)
    layouts = [session.cache_layout, session.draft_cache_layout]
    prefixes = PrefixCache(layouts, 8 * BLOCK * sum(layout.bytes_per_token for layout in layouts))
    prompt = [(3 * i) % VOCAB for i in range(90)]
    counts, answers = [], []
    for _ in range(2):
        stats = SpeculationStats()
        session.steps.clear()
        pieces = [piece for _, piece in run_all(session, [request(prompt, new=20)], 1, 64, prefixes, 2, stats)]
        answers.append(tokens(pieces))
        counts.append((stats.drafted, stats.accepted))
    assert session.steps[0][0] == (1, 2)  # the last known token, whose hidden state is wanted, and the last one
    assert answers[0] == answers[1] == by_recomputation(prompt, 20)
    assert counts[0] == counts[1]


def test_sampling_does_not_depend_on_the_batch() -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]

    def run(places: list[int]) -> dict[int, list[int]]:
        requests = [request(prompts[i], new=12, index=i, temperature=1.5, seed=3) for i in places]
        found: dict[int, list[int]] = defaultdict(list)
        for index, piece in run_all(ToyDraftingSession(VOCAB), requests, 3, speculate=2):
            found[places[index]] += piece.token_ids
        return found

    together = run([0, 1, 2])
    assert [run([i])[i] for i in range(3)] == [together[i] for i in range(3)]


def test_what_is_drawn_is_as_likely_as_without() -> None:
    """Third tokens of 4,000 samples, with and without; their distributions differ by what chance explains."""
    counts = {}
    for speculate in (0, 2):
        requests = [request([1, 2], new=3, index=i, temperature=1.2, top_k=8, seed=9 + speculate) for i in range(4000)]
        third = np.zeros(VOCAB)
        found: dict[int, list[int]] = defaultdict(list)
        for index, piece in run_all(ToyDraftingSession(VOCAB, 0.5), requests, 64, speculate=speculate):
            found[index] += piece.token_ids
        for each in found.values():
            third[each[2]] += 1
        counts[speculate] = third
    both = counts[0] + counts[2]
    seen = both >= 10
    chi_squared = float((((counts[0] - counts[2]) ** 2)[seen] / both[seen]).sum())
    freedom = int(seen.sum()) - 1
    assert freedom >= 5
    assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)


def test_a_failing_draft_ends_its_requests() -> None:
    class Failing(ToyDraftingSession):
        def draft(
            self, hidden: Hidden, next_ids: IntArray, start: IntArray, cache: LatentCache, slots: range,
            logit_rows: IntArray,
        ) -> tuple[Logits, Hidden]:  # fmt: skip
            if len(logit_rows):
                raise BackendError("no memory")
            return super().draft(hidden, next_ids, start, cache, slots, logit_rows)

    batcher = Batcher(Failing(VOCAB), slots=2, capacity=20, speculate=1)
    batcher.submit(request([1, 2]))
    outcomes = [outcome for _ in range(2) for _, outcome in batcher.turn()]
    assert isinstance(outcomes[-1], BackendError) and not batcher.busy


def test_engines_that_cannot_draft_are_refused() -> None:
    with pytest.raises(RequestError, match="MTP layer"):
        Batcher(ToySession(VOCAB), slots=1, capacity=9, speculate=1)
    with pytest.raises(RequestError, match="MTP layer"):
        checked_drafts(ToySession(VOCAB), 1)
    with pytest.raises(RequestError, match="0 to 8"):
        checked_drafts(ToyDraftingSession(VOCAB), 9)
    assert checked_drafts(ToySession(VOCAB), 0) == 0
