"""The batch: requests come and go, each turn moves those that have a slot on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dsv3export.errors import UserError
from dsv3export.runtime.batching.flights import Flight, Flights
from dsv3export.runtime.batching.prefix_cache import PrefixCache
from dsv3export.runtime.batching.schedule import PrefillTurns, decode_ranges
from dsv3export.runtime.batching.speculation import Drafting, SpeculationStats, Speculator
from dsv3export.runtime.drafting import drafter
from dsv3export.runtime.generation import PREFILL_CHUNK, FinishReason, Piece, Request
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.logprobs import token_logprobs
from dsv3export.runtime.sampling import Drafted
from dsv3export.runtime.session import Hidden, IntArray, Logits, PipelinedSession, Session

Outcome = Piece | UserError


@dataclass
class _Sequence:
    """A request and its tokens, prompt and new ones; the length of its slot says how many of them are cached."""

    ticket: int
    request: Request
    tokens: list[int] = field(default_factory=list)
    cancelled: bool = False

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    def take(self, logits: Logits, draft: Drafted | None = None) -> Piece:
        """Chooses the next token from float32[vocab], the draft if it may be. Raises BackendError for no numbers."""
        request = self.request
        token = request.sampler.verify(logits, draft) if draft else request.sampler.sample(logits)
        self.tokens.append(token)
        ends = token in request.eos_ids
        text = "" if ends else request.text.add(token)
        reason: FinishReason | None = None
        if ends or request.text.stopped:
            reason = "stop"
        elif self.new_tokens == request.max_new_tokens:
            reason = "length"
        if reason:
            text += request.text.finish()
        logprobs = None if request.logprobs is None else [token_logprobs(logits, token, request.logprobs)]
        return Piece(text, [token], reason, logprobs)


class Batcher:
    """Requests over one session; whoever owns it calls `turn` while it is `busy`. Not for several threads.

    Args:
        session: Runs the steps.
        slots: How many sequences run at the same time; further requests wait.
        capacity: Tokens of a sequence at most, prompt and new ones together.
        prefill_chunk: Tokens of prompts that a turn computes at most.
        prefixes: Where latents of finished sequences are kept and looked up.
        speculate: Tokens that the MTP layer drafts for each step.
        speculation: Counts what is drafted.

    Raises RequestError where it is to speculate and the engine has no MTP layer.
    """

    def __init__(
        self,
        session: Session,
        slots: int,
        capacity: int,
        prefill_chunk: int = PREFILL_CHUNK,
        prefixes: PrefixCache | None = None,
        speculate: int = 0,
        speculation: SpeculationStats | None = None,
    ) -> None:
        self._session, self._chunk, self._prefixes = session, prefill_chunk, prefixes
        # A step writes its drafts too, of which the last may lie behind the last token.
        self._cache = LatentCache(session.cache_layout, slots, capacity + speculate)
        self._caches = [self._cache]
        self._speculator: Speculator | None = None
        if speculate:
            stats = speculation or SpeculationStats()
            self._speculator = Speculator(drafter(session), speculate, slots, capacity, stats)
            self._caches.append(self._speculator.cache)
        self._flights: Flights[_Sequence] | None = None
        if not speculate and isinstance(session, PipelinedSession) and session.depth > 1:
            self._flights = Flights(session.depth)
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._prefilling = PrefillTurns()
        self._tickets = 0

    @property
    def busy(self) -> bool:
        """Whether a turn would do anything."""
        return bool(self._waiting or self._running)

    @property
    def slots(self) -> int:
        """Requests that can have a slot at the same time."""
        return self._cache.slots

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return len(self._running)

    @property
    def cached_tokens(self) -> int:
        """Tokens that the slots hold now."""
        return int(self._cache.lengths[list(self._running)].sum())

    @property
    def cache_bytes(self) -> int:
        """Size of the slots' memory."""
        return sum(cache.nbytes for cache in self._caches)

    def submit(self, request: Request) -> int:
        """Queues a request, which must fit the capacity; returns its ticket, the name of its pieces."""
        self._tickets += 1
        self._waiting.append(_Sequence(self._tickets, request, list(request.prompt)))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        """Drops a request wherever it is; unknown and finished ones are ignored."""
        self._waiting = deque(each for each in self._waiting if each.ticket != ticket)
        for slot, sequence in list(self._running.items()):
            if sequence.ticket == ticket:
                sequence.cancelled = True
                self._release(slot)

    def turn(self) -> Iterator[tuple[int, Outcome]]:
        """A chunk's worth of prompts, one token for every sequence that decodes: (ticket, outcome) as they come.

        An error ends the requests that it concerns, and only those. A caller that stops in the middle loses what the
        rest of the turn would have brought.
        """
        self._admit()
        decoding = sorted(slot for slot, sequence in self._running.items() if sequence.new_tokens)
        for slot in self._prefilling.turn(self._next_chunk, self._chunk):
            yield from self._prefill(slot)
        if self._flights is not None:
            yield from self._decode_pipelined(self._flights)
            return
        for run in decode_ranges(decoding):
            yield from self._decode(run)

    def _admit(self) -> None:
        """Gives free slots, lowest first, to those that wait longest."""
        for slot in range(self._cache.slots):
            if not self._waiting:
                return
            if slot not in self._running:
                sequence = self._running[slot] = self._waiting.popleft()
                reused = self._prefixes.fetch(sequence.tokens, slot, *self._caches) if self._prefixes is not None else 0
                if self._speculator and reused:
                    reused -= 1  # its hidden state is wanted once more, for the pair with the token behind it
                self._cache.lengths[slot] = reused
                if self._speculator:
                    self._speculator.begin(slot, reused)
                self._prefilling.add(slot)

    def _next_chunk(self, slot: int) -> int:
        """Tokens of the next chunk of a slot's prompt. Where chunks end depends on the prompt alone."""
        return min(self._chunk, len(self._running[slot].request.prompt) - int(self._cache.lengths[slot]))

    def _prefill(self, slot: int) -> Iterator[tuple[int, Outcome]]:
        """The next chunk of a slot's prompt, and the first new token after the last one."""
        sequence = self._running[slot]
        start = int(self._cache.lengths[slot])
        ids = sequence.request.prompt[start : start + self._next_chunk(slot)]
        is_last = start + len(ids) == len(sequence.request.prompt)
        # Only the last token's logits matter: the head is the widest matrix of the model.
        rows = np.array([len(ids) - 1] if is_last else [], np.int64)
        try:
            logits, hidden = self._step(np.array([ids], np.int64), range(slot, slot + 1), rows)
            self._cache.lengths[slot] = start + len(ids)
            if self._speculator:
                self._speculator.computed(slot, hidden[0])
                self._speculator.prefill(slot, sequence.request.prompt)
        except UserError as error:
            yield from self._failed([slot], error)
            return
        if is_last:
            self._prefilling.remove(slot)
            self._keep(slot, sequence.request.prompt)
            for outcome in self._advanced(slot, logits, ()):
                yield sequence.ticket, outcome

    def _decode(self, run: range) -> Iterator[tuple[int, Outcome]]:
        """One token, and those of the drafts that are right, for each slot of a run that decodes.

        The others of the run get tokens behind their valid rows, which the next real ones overwrite.
        """
        active = {slot: self._running[slot] for slot in run if slot in self._running and self._running[slot].new_tokens}
        if not active:  # all of them were cancelled while this turn handed out pieces
            return
        try:
            drafts = self._drafts(run, active)
            width = 1 + max(len(each) for each in drafts.values())
            ids = np.zeros((len(run), width), np.int64)
            for slot, sequence in active.items():
                tokens = [sequence.tokens[-1], *(draft.token for draft in drafts[slot])]
                ids[slot - run.start, : len(tokens)] = tokens
            rows = [(slot - run.start) * width + i for slot in active for i in range(len(drafts[slot]) + 1)]
            logits, hidden = self._step(ids, run, np.array(rows))
        except UserError as error:
            yield from self._failed(list(active), error)
            return
        outcomes, first = [], 0
        for slot, sequence in active.items():
            behind = first + len(drafts[slot]) + 1
            if self._speculator:
                self._speculator.computed(slot, hidden[slot - run.start])
            outcomes.append((sequence, self._advanced(slot, logits[first:behind], drafts[slot])))
            first = behind
        for sequence, each in outcomes:
            for outcome in each:
                if not sequence.cancelled:
                    yield sequence.ticket, outcome

    def _decode_pipelined(self, flights: Flights[_Sequence]) -> Iterator[tuple[int, Outcome]]:
        """The tokens of the steps that are under way; as soon as one has landed, the next one of its slots begins.

        So steps stay under way from turn to turn, and no stage waits for the others' slots.
        """
        for _ in range(len(flights)):
            yield from self._land(flights.land())
            yield from self._begin(flights)
        yield from self._begin(flights)

    def _begin(self, flights: Flights[_Sequence]) -> Iterator[tuple[int, Outcome]]:
        """Begins a token for the slots that decode and are not under way; outcomes are failures only."""
        assert isinstance(self._session, PipelinedSession)
        decoding = [slot for slot, sequence in self._running.items() if sequence.new_tokens]
        for run in flights.free_runs(decoding):
            active = {slot: self._running[slot] for slot in run if slot in decoding}
            ids = np.array([[active[slot].tokens[-1] if slot in active else 0] for slot in run], np.int64)
            rows = np.array([slot - run.start for slot in active], np.int64)
            try:
                flights.add(Flight(active, self._session.begin_step(ids, self._starts(run), self._cache, run, rows)))
            except UserError as error:
                yield from self._failed(list(active), error)

    def _land(self, flight: Flight[_Sequence]) -> Iterator[tuple[int, Outcome]]:
        """What a step has brought to those that have not been cancelled meanwhile."""
        try:
            logits = flight.finish()
        except UserError as error:
            yield from self._failed([slot for slot, each in flight.sequences.items() if not each.cancelled], error)
            return
        for (slot, sequence), row in zip(flight.sequences.items(), logits, strict=True):
            if not sequence.cancelled:
                for outcome in self._advanced(slot, row[None], ()):
                    yield sequence.ticket, outcome

    def _starts(self, run: range) -> IntArray:
        """Valid rows of a run's slots."""
        return np.array([self._cache.lengths[slot] if slot in self._running else 0 for slot in run], np.int64)

    def _step(self, ids: IntArray, run: range, rows: IntArray) -> tuple[Logits, Hidden]:
        """The trunk over a run behind the valid rows of its slots; the hidden states only where they are wanted."""
        start = self._starts(run)
        if self._speculator:
            return self._speculator.session.step_hidden(ids, start, self._cache, run, rows)
        return self._session.step(ids, start, self._cache, run, rows), np.empty((len(run), 0, 0), np.float32)

    def _drafts(self, run: range, active: Mapping[int, _Sequence]) -> Mapping[int, Sequence[Drafted]]:
        if not self._speculator:
            return dict.fromkeys(active, ())
        wanted = {}
        for slot, sequence in active.items():
            left = sequence.request.max_new_tokens - sequence.new_tokens
            count = min(self._speculator.drafts, left - 1)
            wanted[slot] = Drafting(sequence.tokens, count, sequence.request.sampler.draft)
        return self._speculator.propose(run, wanted)

    def _advanced(self, slot: int, logits: Logits, drafts: Sequence[Drafted]) -> list[Outcome]:
        """Takes tokens from rows of logits, the next one only after a draft that was right; frees a slot that ends.

        The rows of the newest token and of right drafts become valid, but of a prompt they are so already.
        """
        sequence = self._running[slot]
        decoding = sequence.new_tokens > 0
        outcomes: list[Outcome] = []
        right, finished = 0, False
        for row, draft in zip(logits, [*drafts, None], strict=True):
            try:
                piece = sequence.take(row, draft)
            except UserError as error:
                self._drop(slot)
                return [*outcomes, error]
            outcomes.append(piece)
            finished = piece.finish_reason is not None
            if draft is None or piece.token_ids != [draft.token]:
                break
            right += 1
            if finished:
                break
        if decoding:
            self._cache.lengths[slot] += len(outcomes)
            if self._speculator:
                self._speculator.verified(slot, int(self._cache.lengths[slot]), right)
        if finished:
            self._release(slot)
        return outcomes

    def _failed(self, slots: Sequence[int], error: UserError) -> Iterator[tuple[int, Outcome]]:
        """A step failed: what it wrote into these slots is not to be trusted."""
        for slot in slots:
            yield self._drop(slot).ticket, error

    def _drop(self, slot: int) -> _Sequence:
        """Frees a slot and keeps nothing."""
        self._prefilling.remove(slot)
        return self._running.pop(slot)

    def _release(self, slot: int) -> None:
        """Frees a slot; what it holds is kept for later prompts."""
        sequence = self._drop(slot)
        self._keep(slot, sequence.tokens[: self._cache.lengths[slot]])

    def _keep(self, slot: int, tokens: Sequence[int]) -> None:
        if self._prefixes is not None:
            self._prefixes.store(tokens, slot, *self._caches)
