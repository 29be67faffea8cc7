"""The batch: requests come and go, each turn moves those that have a slot on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dsv3export.errors import UserError
from dsv3export.runtime.batching.prefix_cache import PrefixCache
from dsv3export.runtime.batching.schedule import PrefillTurns, decode_ranges
from dsv3export.runtime.generation import PREFILL_CHUNK, FinishReason, Piece, Request
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.logprobs import token_logprobs
from dsv3export.runtime.session import Logits, Session

Outcome = Piece | UserError


@dataclass
class _Sequence:
    """A request and its tokens, prompt and new ones; the length of its slot says how many of them are cached."""

    ticket: int
    request: Request
    tokens: list[int] = field(default_factory=list)
    reused: int = 0

    def take(self, logits: Logits) -> Piece:
        """Chooses the next token from float32[vocab]. Raises BackendError for logits that are no numbers."""
        request = self.request
        token = request.sampler.sample(logits)
        self.tokens.append(token)
        ends = token in request.eos_ids
        text = "" if ends else request.text.add(token)
        reason: FinishReason | None = None
        if ends or request.text.stopped:
            reason = "stop"
        elif len(self.tokens) == len(request.prompt) + request.max_new_tokens:
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
    """

    def __init__(
        self,
        session: Session,
        slots: int,
        capacity: int,
        prefill_chunk: int = PREFILL_CHUNK,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._session, self._chunk, self._prefixes = session, prefill_chunk, prefixes
        self._cache = LatentCache(session.cache_layout, slots, capacity)
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
        return self._cache.nbytes

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
                self._release(slot)

    def turn(self) -> Iterator[tuple[int, Outcome]]:
        """A chunk's worth of prompts, one token for every sequence that decodes: (ticket, outcome) as they come.

        An error ends the requests that it concerns, and only those. A caller that stops in the middle loses what the
        rest of the turn would have brought.
        """
        self._admit()
        decoding = sorted(slot for slot in self._running if self._new_tokens(slot))
        for slot in self._prefilling.turn(self._next_chunk, self._chunk):
            yield from self._prefill(slot)
        for run in decode_ranges(decoding):
            yield from self._decode(run)

    def _admit(self) -> None:
        """Gives free slots, lowest first, to those that wait longest."""
        for slot in range(self._cache.slots):
            if not self._waiting:
                return
            if slot not in self._running:
                sequence = self._running[slot] = self._waiting.popleft()
                if self._prefixes is not None:
                    sequence.reused = self._prefixes.fetch(sequence.tokens, self._cache, slot)
                self._cache.lengths[slot] = sequence.reused
                self._prefilling.add(slot)

    def _new_tokens(self, slot: int) -> int:
        sequence = self._running[slot]
        return len(sequence.tokens) - len(sequence.request.prompt)

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
        run = range(slot, slot + 1)
        try:
            logits = self._session.step(np.array([ids], np.int64), np.array([start]), self._cache, run, rows)
        except UserError as error:
            yield from self._failed([slot], error)
            return
        self._cache.lengths[slot] = start + len(ids)
        if is_last:
            self._prefilling.remove(slot)
            if self._prefixes is not None:
                self._prefixes.store(sequence.request.prompt, self._cache, slot)
            yield self._taken(slot, logits[0])

    def _decode(self, run: range) -> Iterator[tuple[int, Outcome]]:
        """One token for each slot of a run that decodes.

        The others of the run get a token behind their valid rows, which the next real one overwrites.
        """
        active = [slot for slot in run if slot in self._running and self._new_tokens(slot)]
        if not active:  # all of them were cancelled while this turn handed out pieces
            return
        ids = np.array([[self._running[slot].tokens[-1] if slot in active else 0] for slot in run], np.int64)
        start = np.array([self._cache.lengths[slot] if slot in self._running else 0 for slot in run], np.int64)
        rows = np.array([slot - run.start for slot in active])
        try:
            logits = self._session.step(ids, start, self._cache, run, rows)
        except UserError as error:
            yield from self._failed(active, error)
            return
        self._cache.lengths[active] += 1
        for slot, row in zip(active, logits, strict=True):
            if slot in self._running:
                yield self._taken(slot, row)

    def _taken(self, slot: int, logits: Logits) -> tuple[int, Outcome]:
        sequence = self._running[slot]
        try:
            piece = sequence.take(logits)
        except UserError as error:
            self._drop(slot)
            return sequence.ticket, error
        if piece.finish_reason is not None:
            self._release(slot)
        return sequence.ticket, piece

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
        if self._prefixes is not None:
            self._prefixes.store(sequence.tokens[: self._cache.lengths[slot]], self._cache, slot)
