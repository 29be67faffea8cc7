"""Chooses the next token from a row of logits.

The order is: penalties and bias, temperature, top-k, top-p, min-p, draw; each step sees only what the one before it
kept. Temperature 0 is greedy: the largest logit, the lowest token id among equals. Equal logits are ranked by token id
everywhere, so that a result never depends on how a sort breaks ties.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dsv3export.errors import BackendError, RequestError
from dsv3export.runtime.session import IntArray, Logits

Probabilities = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens.

    Args:
        temperature: Divides the logits; 0 is greedy.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all.
        min_p: Keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
        seed: 0 .. 2^64-1; None draws one from the operating system.
        frequency_penalty: Taken from a token's logit for each time that it was generated before, -2 to 2.
        presence_penalty: Taken once from the logits of tokens that were generated before, -2 to 2.
        logit_bias: Added to the logits of these token ids, -100 to 100.

    Raises:
        RequestError: A value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        _require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", ">= 0", self.temperature)
        _require(self.top_k >= 0, "top_k", ">= 0", self.top_k)
        _require(0 < self.top_p <= 1, "top_p", "> 0 and <= 1", self.top_p)
        _require(0 <= self.min_p <= 1, "min_p", ">= 0 and <= 1", self.min_p)
        _require(self.seed is None or 0 <= self.seed < 2**64, "seed", ">= 0 and < 2^64", self.seed)
        for name in ("frequency_penalty", "presence_penalty"):
            _require(-2 <= getattr(self, name) <= 2, name, ">= -2 and <= 2", getattr(self, name))
        for bias in (self.logit_bias or {}).values():
            _require(-100 <= bias <= 100, "logit_bias", ">= -100 and <= 100", bias)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise RequestError(name, expected=expected, got=str(got))


@dataclass(frozen=True)
class Drafted:
    """A token that another distribution chose: `probabilities` (float64) of `tokens` are what it was drawn from."""

    token: int
    tokens: IntArray
    probabilities: Probabilities

    @property
    def probability(self) -> float:
        """Of the token itself."""
        return float(self.probabilities[self.tokens == self.token][0])


class Sampler:
    """Draws the tokens of one request, and remembers them where penalties ask for that.

    Its random numbers depend on the seed and the request's index alone, so that a result is the same whatever else
    is in the batch.
    """

    def __init__(self, params: SamplingParams, request_index: int = 0) -> None:
        self.params = params
        seed = secrets.randbits(64) if params.seed is None else params.seed
        key = np.array([seed, request_index], np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))
        self._drawn: Counter[int] = Counter()
        bias = params.logit_bias or {}
        self._biased, self._bias = np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)

    def sample(self, logits: Logits) -> int:
        """The next token id for float32[vocab] logits. Raises BackendError for logits that are no numbers."""
        logits = self._adjusted(logits)
        if self.params.temperature == 0:
            return self._remembered(int(np.argmax(logits)))
        return self._remembered(self._draw(*candidates(logits, self.params)))

    def draft(self, logits: Logits) -> Drafted:
        """A guess, for `verify` to judge, by the same rules from a draft model's logits. Raises as `sample`."""
        logits = self._adjusted(logits)
        if self.params.temperature == 0:
            best = np.array([np.argmax(logits)])
            return Drafted(int(best[0]), best, np.ones(1))
        tokens, probabilities = candidates(logits, self.params)
        return Drafted(self._draw(tokens, probabilities), tokens, probabilities)

    def verify(self, logits: Logits, draft: Drafted) -> int:
        """The next token for float32[vocab] logits, which is the draft's as often as it may be. Raises as `sample`.

        With p of these logits and q of the draft, its token is taken with probability min(1, p/q), and otherwise one
        drawn from max(0, p - q): all in all each token comes with probability p (Leviathan et al. 2023, appendix A.1).
        Greedy is the case where p is 1 for one token.
        """
        logits = self._adjusted(logits)
        if self.params.temperature == 0:
            return self._remembered(int(np.argmax(logits)))
        tokens, probabilities = candidates(logits, self.params)
        of_draft = float(probabilities[tokens == draft.token].sum())
        if self._random.random() * draft.probability < of_draft:
            return self._remembered(draft.token)
        rest = probabilities.copy()
        _, mine, theirs = np.intersect1d(tokens, draft.tokens, assume_unique=True, return_indices=True)
        rest[mine] = np.maximum(rest[mine] - draft.probabilities[theirs], 0)
        # Nothing is left only where both distributions are one, but for rounding: then either will do.
        return self._remembered(self._draw(tokens, rest if rest.any() else probabilities))

    def _adjusted(self, logits: Logits) -> Logits:
        """With penalties and bias, as OpenAI's documentation defines them. Raises as `require_finite`."""
        require_finite(logits)
        penalties = self.params.frequency_penalty, self.params.presence_penalty
        if not (len(self._biased) or (any(penalties) and self._drawn)):
            return logits
        adjusted = logits.copy()
        adjusted[self._biased] += self._bias
        tokens = np.array(list(self._drawn), np.int64)
        counts = np.array(list(self._drawn.values()), np.float32)
        adjusted[tokens] -= np.float32(penalties[0]) * counts + np.float32(penalties[1])
        return adjusted

    def _remembered(self, token: int) -> int:
        if self.params.frequency_penalty or self.params.presence_penalty:
            self._drawn[token] += 1
        return token

    def _draw(self, tokens: IntArray, weights: Probabilities) -> int:
        """One of the tokens; the weights need not sum to 1."""
        cumulative = np.cumsum(weights)
        position = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        # Rounding may lead behind the last one that has any weight.
        return int(tokens[min(position, int(np.flatnonzero(weights)[-1]))])


def require_finite(logits: Logits) -> None:
    """Raises BackendError for NaN, +inf, or nothing but -inf; a single -inf is a token that is never chosen."""
    best = logits.max()  # NaN if any logit is
    if not np.isfinite(best):
        token = int(np.argmax(np.isnan(logits))) if np.isnan(best) else int(np.argmax(logits))
        raise BackendError(
            "the logits of this step",
            expected="finite numbers",
            got=f"{logits[token]} for token {token}",
            fix="The weights of the checkpoint or the engine are probably damaged.",
        )


def candidates(logits: Logits, params: SamplingParams) -> tuple[IntArray, Probabilities]:
    """The tokens that may be drawn, likeliest first, and their probabilities, which sum to 1.

    `params.temperature` must not be 0; `logits` must have passed `require_finite`.
    """
    tokens = _ranked(logits, params.top_k)
    # in float64 and from the maximum down, so that a tiny temperature gives exp(-inf) = 0 and never inf - inf
    scaled = (logits[tokens].astype(np.float64) - float(logits[tokens[0]])) / params.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if params.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(probabilities), params.top_p, side="left")) + 1
        tokens, probabilities = tokens[:kept], probabilities[:kept]
    if params.min_p > 0:
        kept = int(np.count_nonzero(probabilities >= params.min_p * probabilities[0]))
        tokens, probabilities = tokens[:kept], probabilities[:kept]
    return tokens, probabilities / probabilities.sum()


def _ranked(logits: Logits, top_k: int) -> IntArray:
    """The ids of the top_k largest logits (0: all), largest first, equals by id."""
    if 0 < top_k < len(logits):
        threshold = np.partition(logits, len(logits) - top_k)[len(logits) - top_k]
        above = np.flatnonzero(logits > threshold)
        equal = np.flatnonzero(logits == threshold)[: top_k - len(above)]
        tokens = np.sort(np.concatenate([above, equal]))
    else:
        tokens = np.arange(len(logits))
    return tokens[_descending(logits[tokens])]


def _descending(values: Logits) -> IntArray:
    """Stable descending argsort, as np.argsort(-values, kind="stable"), but about 7 times as fast.

    The bits of a float32, with those of negative numbers turned round, order like the number: they become the upper
    half of an integer, the position the lower, and integers sort quickly.
    """
    bits = (np.float32(0) - values).view(np.int32)  # 0 - x rather than -x: there is one zero
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    keys = np.sort((ordered << 32) | np.arange(len(values)))
    positions: IntArray = keys & 0xFFFFFFFF
    return positions
