"""Times prefill and decoding of an engine, through the batch that its users' requests run in."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from dsv3export.errors import RequestError, UserError
from dsv3export.runtime.batching.run import longest
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.generation import Request

_SEED = 1


@dataclass(frozen=True)
class Case:
    """`batch` prompts of `prompt_tokens` random tokens each, `new_tokens` generated for each, `drafts` a step."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    drafts: int = 0


@dataclass(frozen=True)
class Rate:
    """Tokens per second, of all sequences together: the median of the repeats, the slowest and the fastest."""

    median: float
    slowest: float
    fastest: float

    @classmethod
    def of(cls, rates: Sequence[float]) -> Rate:
        return cls(statistics.median(rates), min(rates), max(rates))


@dataclass(frozen=True)
class Measured:
    """What a case came to.

    Attributes:
        prefill: Prompt tokens per second, until every sequence has its first token.
        decode: New tokens per second from then on, the first ones left out.
        acceptance: The share of drafts that were right; None without drafts.
    """

    case: Case
    prefill: Rate
    decode: Rate
    acceptance: float | None


def measure(engine: Engine, case: Case, repeats: int, advance: Callable[[int], None]) -> Measured:
    """One round to warm up, then `repeats` rounds; `advance` is called after each.

    Tokens are drawn at random, and end-of-sequence tokens do not end, so that the work is the same for every model.
    Raises RequestError where the case does not fit the engine, BackendError when a step fails.
    """
    if case.new_tokens < 2:
        raise RequestError("new tokens", expected="at least 2", got=str(case.new_tokens))
    random = np.random.default_rng(_SEED)
    shape = (case.batch, case.prompt_tokens)
    prompts = random.integers(0, engine.session.vocab_size, shape)
    stats = engine.speculation
    before = (0, 0)
    rounds = []
    for place in range(repeats + 1):
        rounds.append(_round(engine, case.drafts, [engine.requests.make(row, i, case.new_tokens, ignore_eos=True)
                                      for i, row in enumerate(prompts)]))  # fmt: skip
        if place == 0:
            before = (stats.drafted, stats.accepted)
        advance(1)
    drafted, accepted = stats.drafted - before[0], stats.accepted - before[1]
    measured = rounds[1:]
    return Measured(
        case,
        Rate.of([case.batch * case.prompt_tokens / each.prefill_seconds for each in measured]),
        Rate.of([each.decoded / each.decode_seconds for each in measured]),
        accepted / drafted if drafted else None,
    )


@dataclass(frozen=True)
class _Round:
    """Seconds until all have their first token; tokens that came after that, and in how many seconds."""

    prefill_seconds: float
    decoded: int
    decode_seconds: float


def _round(engine: Engine, drafts: int, requests: list[Request]) -> _Round:
    batcher = engine.batcher(len(requests), longest(requests), drafts)
    waiting = {batcher.submit(request) for request in requests}
    started = first = perf_counter()
    decoded = 0
    while batcher.busy:
        for ticket, outcome in batcher.turn():
            if isinstance(outcome, UserError):
                raise outcome
            if ticket in waiting:
                waiting.remove(ticket)
                first, decoded = perf_counter(), 0
            else:
                decoded += len(outcome.token_ids)
    return _Round(first - started, decoded, perf_counter() - first)
