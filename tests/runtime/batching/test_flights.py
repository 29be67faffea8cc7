"""Decode steps that stay under way from turn to turn, over the stages of a pipeline."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.errors import BackendError, UserError
from dsv3export.runtime.batching.batcher import Batcher
from dsv3export.runtime.batching.flights import Flight, Flights
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import IntArray, Logits, PipelinedSession
from tests.runtime.batching.requests import VOCAB, by_recomputation, request, tokens
from tests.runtime.toy_model import ToySession


class ToyPipeline(ToySession):
    """Steps are computed in the order in which they are begun; their logits are handed out later.

    Args:
        fail: The number of the step that fails.

    Attributes:
        under_way: Who decodes in the steps whose logits were not asked for yet.
        most: How many there have been at a time.
    """

    def __init__(self, depth: int, fail: int = -1) -> None:
        super().__init__(VOCAB)
        self.depth = depth
        self.under_way: deque[set[int]] = deque()
        self.most = 0
        self._fail, self._begun = fail, 0

    def begin_step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Callable[[], Logits]:
        active = {slots[row] for row in logit_rows}
        assert not any(set(slots) & other for other in self.under_way)
        self._begun += 1
        logits, failing = self.step(input_ids, start, cache, slots, logit_rows), self._begun == self._fail
        self.under_way.append(active)
        self.most = max(self.most, len(self.under_way))

        def finish() -> Logits:
            assert self.under_way.popleft() == active
            if failing:
                raise BackendError("a step failed")
            return logits

        return finish


PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=9)


@settings(deadline=None)
@given(prompts=PROMPTS, new=st.lists(st.integers(1, 9), min_size=9, max_size=9), slots=st.integers(1, 6),
       depth=st.integers(2, 3), cancelled=st.sets(st.integers(1, 9)), chunk=st.sampled_from([2, 256]))  # fmt: skip
def test_tokens_are_those_of_one_after_the_other(
    prompts: list[list[int]], new: list[int], slots: int, depth: int, cancelled: set[int], chunk: int
) -> None:
    session = ToyPipeline(depth)
    assert isinstance(session, PipelinedSession)
    batcher = Batcher(session, slots, 20, chunk)
    tickets = [batcher.submit(request(prompt, count)) for prompt, count in zip(prompts, new, strict=False)]
    pieces = defaultdict(list)
    while batcher.busy:
        for ticket, piece in batcher.turn():
            assert not isinstance(piece, UserError)
            pieces[ticket].append(piece)
            if ticket in cancelled and len(pieces[ticket]) == 2:
                batcher.cancel(ticket)
    for ticket, prompt, count in zip(tickets, prompts, new, strict=False):
        expected = by_recomputation(prompt, count)
        assert tokens(pieces[ticket]) == (expected[:2] if ticket in cancelled else expected)


def test_a_step_for_each_stage_stays_under_way() -> None:
    session = ToyPipeline(depth=2)
    batcher = Batcher(session, slots=4, capacity=40)
    for first in range(4):
        batcher.submit(request([first, 3], new=20))
    list(batcher.turn())
    for _ in range(10):
        assert len(list(batcher.turn())) == 4  # a token for each
        assert [len(slots) for slots in session.under_way] == [2, 2]
    assert session.most == 2


def test_a_failed_step_ends_its_own_sequences() -> None:
    session = ToyPipeline(depth=2, fail=3)
    batcher = Batcher(session, slots=4, capacity=40)
    tickets = [batcher.submit(request([first, 3], new=8)) for first in range(4)]
    outcomes = defaultdict(list)
    while batcher.busy:
        for ticket, outcome in batcher.turn():
            outcomes[ticket].append(outcome)
    failed = [ticket for ticket in tickets if isinstance(outcomes[ticket][-1], UserError)]
    assert failed == tickets[:2]
    for first, ticket in list(enumerate(tickets))[2:]:
        assert tokens(outcomes[ticket]) == by_recomputation([first, 3], 8)


def test_slots_under_way_are_in_no_other_step() -> None:
    flights: Flights[str] = Flights(2)
    assert flights.free_runs([0, 1, 2, 3]) == [range(2), range(2, 4)]
    flights.add(Flight({1: "b", 2: "c"}, lambda: np.empty((0, 0), np.float32)))
    assert flights.free_runs([0, 1, 2, 3]) == [range(1), range(3, 4)]
    assert flights.free_runs([1, 2]) == []
    assert set(flights.land().sequences) == {1, 2}
    assert flights.free_runs([0, 3]) == [range(2), range(2, 4)]
