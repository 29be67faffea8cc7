"""Collects the pieces of a generation and times them."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.generation import Piece
    from dsv3export.runtime.logprobs import TokenLogprobs


@dataclass(frozen=True)
class Stats:
    """Counts and wall times of one generation. A rate is None where there was nothing to time.

    `cpu_kernels` are those that computed on the CPU; None where something else did.
    """

    prompt_tokens: int
    new_tokens: int
    load_seconds: float
    first_token_seconds: float
    decode_seconds: float
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    peak_memory_bytes: int
    cache_bytes: int
    drafted_tokens: int
    accepted_drafts: int
    cpu_kernels: str | None


@dataclass
class Transcript:
    """What a generation has produced so far. Clock readings are of `time.perf_counter`."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    started_at: float = 0.0
    first_at: float = 0.0
    ended_at: float = 0.0
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def follow(self, pieces: Iterable[Piece]) -> Iterator[str]:
        """Takes the pieces in as they come and hands out their texts."""
        self.started_at = self.first_at = self.ended_at = time.perf_counter()
        for piece in pieces:
            self.ended_at = time.perf_counter()
            if not self.token_ids:
                self.first_at = self.ended_at
            self.text += piece.text
            self.token_ids += piece.token_ids
            self.finish_reason = piece.finish_reason or ""
            self.logprobs += piece.logprobs or ()
            yield piece.text

    def stats(self, engine: Engine, prompt_tokens: int, load_seconds: float) -> Stats:
        """The prompt's time is that until the first token; the others' rate leaves that token out.

        The cache is counted as far as it is filled, drafts over all that `engine` has generated.
        """
        first, decode = self.first_at - self.started_at, self.ended_at - self.first_at
        return Stats(
            prompt_tokens=prompt_tokens,
            new_tokens=len(self.token_ids),
            load_seconds=load_seconds,
            first_token_seconds=first,
            decode_seconds=decode,
            prefill_tokens_per_second=_rate(prompt_tokens, first),
            decode_tokens_per_second=_rate(len(self.token_ids) - 1, decode),
            peak_memory_bytes=peak_memory_bytes(),
            cache_bytes=(prompt_tokens + len(self.token_ids) - 1) * engine.session.cache_layout.bytes_per_token,
            drafted_tokens=engine.speculation.drafted,
            accepted_drafts=engine.speculation.accepted,
            cpu_kernels=engine.cpu_kernels,
        )


def peak_memory_bytes() -> int:
    """The most memory that this process has held, mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None
