"""Log-probabilities of generated tokens and of their likeliest alternatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsv3export.runtime.session import Logits


@dataclass(frozen=True)
class TokenLogprobs:
    """Of one token: natural logarithms of softmax(logits), before temperature and filters.

    `top` has the likeliest tokens and theirs, likeliest first, equals by id.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Logits, token_id: int, count: int) -> TokenLogprobs:
    """For float32[vocab] logits of which the largest is finite; `count` alternatives, fewer if there are fewer."""
    shifted = logits.astype(np.float64) - float(logits.max())
    shifted -= np.log(np.exp(shifted).sum())
    count = min(count, len(logits))
    best = np.argpartition(-shifted, count - 1)[:count] if count else np.empty(0, np.int64)
    ranked = sorted((-float(shifted[token]), int(token)) for token in best)
    return TokenLogprobs(token_id, float(shifted[token_id]), tuple((token, -value) for value, token in ranked))
