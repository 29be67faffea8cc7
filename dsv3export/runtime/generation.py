"""What a generation is asked for and gives, and the logits of a whole prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dsv3export.errors import InternalError
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.logprobs import TokenLogprobs
from dsv3export.runtime.sampling import Sampler
from dsv3export.runtime.session import IntArray, Logits, Session
from dsv3export.runtime.text_stream import TextStream

FinishReason = Literal["stop", "length"]
PREFILL_CHUNK = 256


@dataclass(frozen=True)
class Piece:
    """What one generated token adds: its id and the text that may be shown now (empty while text is held back).

    The last piece of a request has a `finish_reason`: "stop" (end-of-sequence token or stop string) or "length".
    `logprobs`, one for each id, are there if the request asked for them.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True)
class GenerationResult:
    """A finished request.

    `token_ids` are the new tokens only, a final end-of-sequence token included; `text` is their text without special
    tokens, cut before a stop string.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True)
class Request:
    """One checked request; prompt and new tokens together fit into the context.

    `logprobs` is how many alternatives to give log-probabilities for, besides each token; None gives none.
    """

    prompt: list[int]
    max_new_tokens: int
    sampler: Sampler
    text: TextStream
    eos_ids: frozenset[int]
    logprobs: int | None = None


def joined(request: Request, pieces: Sequence[Piece]) -> GenerationResult:
    """All pieces of a request as its result."""
    reason = pieces[-1].finish_reason
    if reason is None:
        raise InternalError("a request ended without a reason")
    token_ids = [token for piece in pieces for token in piece.token_ids]
    logprobs = None
    if request.logprobs is not None:
        logprobs = [one for piece in pieces for one in piece.logprobs or ()]
    return GenerationResult(token_ids, "".join(piece.text for piece in pieces), reason, request.prompt, logprobs)


def prompt_logits(session: Session, token_ids: Sequence[int], prefill_chunk: int = PREFILL_CHUNK) -> Logits:
    """Logits after every token, float32[len(token_ids), vocab]."""
    cache = LatentCache(session.cache_layout, 1, len(token_ids))
    result = np.empty((len(token_ids), session.vocab_size), np.float32)
    for start in range(0, len(token_ids), prefill_chunk):
        chunk = token_ids[start : start + prefill_chunk]
        result[start : start + len(chunk)] = _step_slot(session, cache, 0, chunk, np.arange(len(chunk)))
    return result


def _step_slot(session: Session, cache: LatentCache, slot: int, ids: Sequence[int], rows: IntArray) -> Logits:
    slots = range(slot, slot + 1)
    start = cache.lengths[slot : slot + 1].copy()
    logits = session.step(np.array([ids], np.int64), start, cache, slots, rows)
    cache.lengths[slot] += len(ids)
    return logits
