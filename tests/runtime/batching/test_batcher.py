from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.runtime.batching.batcher import Batcher
from dsv3export.runtime.batching.prefix_cache import BLOCK, PrefixCache
from dsv3export.runtime.generation import Piece
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import IntArray, Logits
from tests.runtime.batching.requests import VOCAB, by_recomputation, request, tokens
from tests.runtime.toy_model import ToySession


class Clock(ToySession):
    """A session whose steps take simulated time: 10 ms, and 1 ms for each token, as on a CPU bound by its weights."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.now = 0.0

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        self.now += 0.010 + 0.001 * input_ids.size
        return super().step(input_ids, start, cache, slots, logit_rows)


def run(batcher: Batcher, clock: Clock | None = None) -> tuple[dict[int, list[Piece]], dict[int, list[float]]]:
    """Runs to the end; pieces by ticket, and when each came."""
    pieces: dict[int, list[Piece]] = defaultdict(list)
    times: dict[int, list[float]] = defaultdict(list)
    while batcher.busy:
        for ticket, piece in batcher.turn():
            pieces[ticket].append(piece)
            times[ticket].append(clock.now if clock else 0.0)
    return pieces, times


def prompt_of(length: int, first: int = 1) -> list[int]:
    return [(first + 7 * i) % VOCAB for i in range(length)]


def test_a_long_prompt_holds_decoding_up_by_one_chunk_at_most() -> None:
    clock = Clock()
    batcher = Batcher(clock, slots=4, capacity=700, prefill_chunk=32)
    short = batcher.submit(request(prompt_of(5), new=60))
    list(batcher.turn())
    batcher.submit(request(prompt_of(600), new=2))
    _, times = run(batcher, clock)
    gaps = np.diff(times[short])
    assert gaps.max() <= 0.010 + 0.032 + 0.010 + 0.001 * 2 + 1e-9


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    clock = Clock()
    batcher = Batcher(clock, slots=2, capacity=700, prefill_chunk=32)
    long, short = batcher.submit(request(prompt_of(640), new=1)), batcher.submit(request(prompt_of(5), new=1))
    _, times = run(batcher, clock)
    assert times[short][0] <= 2 * (0.010 + 0.032)
    # The long one loses no more than what the short one took.
    assert times[long][0] <= 20 * (0.010 + 0.032) + 0.015 + 1e-9


def test_prompts_of_one_length_advance_alike() -> None:
    clock = Clock()
    batcher = Batcher(clock, slots=3, capacity=400, prefill_chunk=32)
    tickets = [batcher.submit(request(prompt_of(320, first), new=1)) for first in range(3)]
    _, times = run(batcher, clock)
    first = [times[ticket][0] for ticket in tickets]
    assert max(first) - min(first) <= 2 * (0.010 + 0.032) + 1e-9


def test_short_prompts_share_a_turn_and_slots_go_to_who_waited_longest() -> None:
    clock = Clock()
    batcher = Batcher(clock, slots=2, capacity=20, prefill_chunk=32)
    tickets = [batcher.submit(request([i], new=3)) for i in range(5)]
    first_turn = list(batcher.turn())
    assert [ticket for ticket, _ in first_turn] == tickets[:2]
    assert (batcher.running, batcher.waiting) == (2, 3)
    pieces, times = run(batcher, clock)
    starts = [times[ticket][0] for ticket in tickets[2:]]
    assert starts == sorted(starts) and set(pieces) == set(tickets)


def test_eight_slots_decode_in_one_step_also_around_a_gap() -> None:
    session = ToySession(VOCAB)
    batcher = Batcher(session, slots=8, capacity=40)
    tickets = [batcher.submit(request([i + 1], new=20)) for i in range(8)]
    list(batcher.turn())
    batcher.cancel(tickets[3])
    session.steps.clear()
    list(batcher.turn())
    assert session.steps == [((8, 1), range(8), 7)]


@settings(max_examples=40)
@given(st.data())
def test_requests_that_come_and_go_get_the_tokens_of_a_run_alone(data: st.DataObject) -> None:
    session = ToySession(VOCAB)
    prefixes = PrefixCache([session.cache_layout], 6 * BLOCK * session.cache_layout.bytes_per_token)
    batcher = Batcher(session, data.draw(st.integers(1, 6)), 60, data.draw(st.integers(1, 9)), prefixes)
    asked: dict[int, tuple[list[int], int]] = {}
    got: dict[int, list[Piece]] = defaultdict(list)
    cancelled: set[int] = set()
    stems = [prompt_of(8, first) for first in range(3)]
    for _ in range(data.draw(st.integers(1, 12))):
        for _ in range(data.draw(st.integers(0, 3))):
            tail = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8))
            prompt, new = data.draw(st.sampled_from(stems)) + tail, data.draw(st.integers(1, 12))
            asked[batcher.submit(request(prompt, new))] = (prompt, new)
        if asked and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(asked)))
            batcher.cancel(gone)
            cancelled.add(gone)
        for ticket, piece in batcher.turn():
            got[ticket].append(piece)
    rest, _ = run(batcher)
    for ticket, pieces in rest.items():
        got[ticket] += pieces
    for ticket, (prompt, new) in asked.items():
        expected = by_recomputation(prompt, new)
        found = tokens(got[ticket])
        assert found == expected[: len(found)] if ticket in cancelled else found == expected
    assert batcher.cached_tokens == 0


def test_a_cancel_in_the_middle_of_a_turn_frees_the_slot() -> None:
    session = ToySession(VOCAB)
    batcher = Batcher(session, slots=3, capacity=40)
    tickets = [batcher.submit(request([i + 1], new=9)) for i in range(4)]
    list(batcher.turn())
    seen = []
    for ticket, _ in batcher.turn():
        seen.append(ticket)
        batcher.cancel(tickets[1])
    assert seen == [tickets[0], tickets[2]]
    pieces, _ = run(batcher)
    assert tokens(pieces[tickets[3]]) == by_recomputation([4], 9) and tickets[1] not in pieces


def test_a_known_beginning_is_not_computed_again() -> None:
    session = ToySession(VOCAB)
    prefixes = PrefixCache([session.cache_layout], 16 * BLOCK * session.cache_layout.bytes_per_token)
    batcher = Batcher(session, slots=1, capacity=400, prefixes=prefixes)
    turn = request(prompt_of(200), new=10)
    batcher.submit(turn)
    answer = tokens(run(batcher)[0][1])
    session.steps.clear()
    follow_up = [*turn.prompt, *answer, 3, 4, 5]
    ticket = batcher.submit(request(follow_up, new=2))
    assert tokens(run(batcher)[0][ticket]) == by_recomputation(follow_up, 2)
    # All of the first turn but its last token, which was handed out and never computed.
    assert session.steps[0][0] == (1, 4)
    assert prefixes.stats.found == 209


@pytest.mark.parametrize("known", [0, 1])
def test_cached_tokens_and_bytes_are_told(known: int) -> None:
    session = ToySession(VOCAB)
    batcher = Batcher(session, slots=2, capacity=10)
    assert batcher.cache_bytes == 20 * session.cache_layout.bytes_per_token
    for i in range(known + 1):
        batcher.submit(request([1, 2, 3 + i], new=4))
    list(batcher.turn())
    assert batcher.cached_tokens == 3 * (known + 1)
