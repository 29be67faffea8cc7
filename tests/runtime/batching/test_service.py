from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue

import numpy as np
import pytest

from dsv3export.errors import BackendError, UserError
from dsv3export.runtime.batching.batcher import Batcher, Outcome
from dsv3export.runtime.batching.service import BatchService, BusyError, ClosedError
from dsv3export.runtime.generation import Piece
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import IntArray, Logits
from tests.runtime.batching.requests import VOCAB, by_recomputation, request, tokens
from tests.runtime.toy_model import ToySession

PATIENCE = 60


class Gated(ToySession):
    """Each step waits until it is let through."""

    def __init__(self, before: Callable[[IntArray], None] | None = None) -> None:
        super().__init__(VOCAB)
        self.gate = threading.Semaphore(0)
        self._before = before

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        assert self.gate.acquire(timeout=PATIENCE)
        if self._before:
            self._before(input_ids)
        return super().step(input_ids, start, cache, slots, logit_rows)

    def open(self) -> None:
        self.gate.release(1_000_000)


def outcomes(queue: Queue[Outcome]) -> list[Outcome]:
    """All of a request, as they come."""
    found = []
    while True:
        outcome = queue.get(timeout=PATIENCE)
        found.append(outcome)
        if not isinstance(outcome, Piece) or outcome.finish_reason is not None:
            return found


def ids(queue: Queue[Outcome]) -> list[int]:
    return tokens(outcome for outcome in outcomes(queue) if isinstance(outcome, Piece))


def test_many_threads_get_what_a_run_alone_gives() -> None:
    service = BatchService(Batcher(ToySession(VOCAB), slots=3, capacity=40, prefill_chunk=4))
    found: dict[int, list[int]] = {}

    def ask(place: int) -> None:
        queue: Queue[Outcome] = Queue()
        service.submit(request([place, place + 1], new=3 + place), queue.put)
        found[place] = ids(queue)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == {place: by_recomputation([place, place + 1], 3 + place) for place in range(12)}
    assert service.close(PATIENCE)
    assert (service.state.running, service.state.waiting) == (0, 0)


def test_cancel_before_and_while_it_runs() -> None:
    session = Gated()
    service = BatchService(Batcher(session, slots=1, capacity=100))
    running, waiting, last = Queue[Outcome](), Queue[Outcome](), Queue[Outcome]()
    first = service.submit(request([1], new=90), running.put)
    second = service.submit(request([2], new=5), waiting.put)
    service.submit(request([3], new=5), last.put)
    session.gate.release(3)
    for _ in range(3):
        running.get(timeout=PATIENCE)
    service.cancel(second)
    service.cancel(first)
    session.open()
    assert ids(last) == by_recomputation([3], 5)
    assert waiting.empty() and running.qsize() <= 1
    service.cancel(first)  # long gone
    assert service.close(PATIENCE)


def test_back_pressure_and_a_closing_service_refuse() -> None:
    session = Gated()
    service = BatchService(Batcher(session, slots=1, capacity=20), max_waiting=2)
    queues = [Queue[Outcome]() for _ in range(3)]
    service.submit(request([1]), queues[0].put)
    session.gate.release()
    queues[0].get(timeout=PATIENCE)  # it has its slot
    for queue in queues[1:]:
        service.submit(request([1]), queue.put)
    with pytest.raises(BusyError, match="at most 2 that wait, got 3"):
        service.submit(request([1]), queues[0].put)
    assert not service.close(0.01)
    with pytest.raises(ClosedError):
        service.submit(request([1]), queues[0].put)
    session.open()
    assert service.close(PATIENCE)
    assert [len(outcomes(queue)) for queue in queues] == [5, 6, 6]


def test_abort_tells_everybody() -> None:
    session = Gated()
    service = BatchService(Batcher(session, slots=1, capacity=20))
    queues = [Queue[Outcome]() for _ in range(3)]
    for queue in queues:
        service.submit(request([1]), queue.put)
    session.gate.release()
    queues[0].get(timeout=PATIENCE)
    session.gate.release()  # one step is under way while it is aborted
    service.abort()
    assert all(isinstance(outcomes(queue)[-1], ClosedError) for queue in queues)


def test_a_failed_step_ends_those_in_it_and_no_others() -> None:
    def fail(input_ids: IntArray) -> None:
        if 13 in input_ids and input_ids.shape[1] > 1:
            raise BackendError("no memory")

    session = Gated(fail)
    session.open()
    service = BatchService(Batcher(session, slots=2, capacity=20))
    good, bad = Queue[Outcome](), Queue[Outcome]()
    service.submit(request([1, 2]), good.put)
    service.submit(request([13, 13]), bad.put)
    assert [str(each) for each in outcomes(bad)] == ["no memory"]
    assert ids(good) == by_recomputation([1, 2], 6)
    assert service.close(PATIENCE)


def test_logits_that_are_no_numbers_end_their_request_only() -> None:
    class Damaged(ToySession):
        def step(
            self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
        ) -> Logits:
            logits = super().step(input_ids, start, cache, slots, logit_rows)
            if input_ids[0, 0] == 7:
                logits[:] = np.nan
            return logits

    service = BatchService(Batcher(Damaged(VOCAB), slots=2, capacity=20))
    good, bad = Queue[Outcome](), Queue[Outcome]()
    service.submit(request([7, 2]), bad.put)
    service.submit(request([1, 2]), good.put)
    (error,) = outcomes(bad)
    assert isinstance(error, UserError) and "finite" in str(error)
    assert ids(good) == by_recomputation([1, 2], 6)
    assert service.close(PATIENCE)


def test_a_bug_reaches_everybody_who_waits(caplog: pytest.LogCaptureFixture) -> None:
    def fail(input_ids: IntArray) -> None:
        raise ZeroDivisionError

    session = Gated(fail)
    service = BatchService(Batcher(session, slots=1, capacity=20))
    queues = [Queue[Outcome]() for _ in range(2)]
    for queue in queues:
        service.submit(request([1]), queue.put)
    session.open()
    for queue in queues:
        (error,) = outcomes(queue)
        assert isinstance(error, BackendError) and "ZeroDivisionError" in str(error)
    assert "the batch ended" in caplog.text
    with pytest.raises(ClosedError):
        service.submit(request([1]), queues[0].put)
