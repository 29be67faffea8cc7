"""How well a model predicts a text, and how far its predictions are from another model's.

The text's tokens (no special tokens among them) are cut into consecutive chunks, the last one shorter. Each chunk is
run alone behind a BOS, so that every token is predicted once, from at most `chunk_tokens` tokens before it. All sums
are in float64 and in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dsv3export.compare.distributions import kl_divergence, log_softmax
from dsv3export.errors import EngineError, RequestError
from dsv3export.progress import NoProgress, Progress
from dsv3export.runtime.session import Logits

if TYPE_CHECKING:
    from dsv3export.config import ModelConfig

CHUNK_TOKENS = 255
# Log-probabilities held at once, in float64: a long chunk over a vocabulary of 129,280 would take gigabytes.
BLOCK_ELEMENTS = 1 << 22

Float64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class LanguageModel(Protocol):
    """What can be evaluated: an `Engine`, or the executor of a checkpoint."""

    @property
    def config(self) -> ModelConfig: ...

    def logits(self, token_ids: list[int], /) -> Logits:
        """Logits after each token, float32[len(token_ids), vocab_size]."""
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a model predicts a text: `token_nll` is -ln p of each of its tokens, float64[tokens]."""

    token_nll: Float64
    chunk_tokens: int

    @property
    def tokens(self) -> int:
        return len(self.token_nll)

    @property
    def nll(self) -> float:
        """Summed over the tokens."""
        return math.fsum(self.token_nll)

    @property
    def nll_per_chunk(self) -> list[float]:
        return [math.fsum(self.token_nll[start : start + self.chunk_tokens])
                for start in range(0, self.tokens, self.chunk_tokens)]  # fmt: skip

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens); infinite where float64 cannot hold it."""
        return _exp(self.nll / self.tokens)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on one text.

    Attributes:
        model: The one in question.
        against: The one that it is measured by.
        token_kl: KL(against || model) of the distributions of each token, float64[tokens].
        same_top: Whether both find the same token the likeliest, bool[tokens].
    """

    model: Evaluation
    against: Evaluation
    token_kl: Float64
    same_top: Bools

    @property
    def perplexity_ratio(self) -> float:
        """The model's perplexity over the other's; infinite where float64 cannot hold it."""
        return _exp((self.model.nll - self.against.nll) / self.model.tokens)

    @property
    def perplexity_ratio_error(self) -> float:
        """The standard error of `perplexity_ratio`; NaN for a single token.

        It is that of the mean of the tokens' differences in nll, which one text gives to both models: much smaller than
        the errors of the two perplexities. Tokens count as independent of each other.
        """
        return self.perplexity_ratio * _standard_error(self.model.token_nll - self.against.token_nll)

    @property
    def kl_mean(self) -> float:
        return math.fsum(self.token_kl) / len(self.token_kl)

    @property
    def kl_error(self) -> float:
        """The standard error of `kl_mean`; NaN for a single token."""
        return _standard_error(self.token_kl)

    @property
    def kl_p99(self) -> float:
        """What 99 of 100 tokens stay below."""
        return float(np.percentile(self.token_kl, 99))

    @property
    def kl_max(self) -> float:
        return float(self.token_kl.max())

    @property
    def top1_agreement(self) -> float:
        """The share of tokens, 0 to 1, where both find the same token the likeliest."""
        return float(self.same_top.mean())

    @property
    def top1_error(self) -> float:
        """The standard error of `top1_agreement`; NaN for a single token."""
        return _standard_error(self.same_top)


def evaluate(
    model: LanguageModel,
    token_ids: Sequence[int],
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Progress | None = None,
) -> Evaluation:
    """The perplexity of a text, given as token ids without BOS.

    Memory: the logits of one chunk, float32[chunk_tokens + 1, vocab_size], and 32 MB of log-probabilities.

    Raises:
        RequestError: No tokens, or a BOS and `chunk_tokens` do not fit into the model's context.
        EngineError: The model computes something that is no number.
    """
    targets = np.asarray(token_ids, np.int64)
    nll = np.empty(len(targets))
    for place, (log_p,) in _predictions([model], targets, chunk_tokens, progress):
        nll[place] = _nll(log_p, targets[place])
    return Evaluation(nll, chunk_tokens)


def compare(
    model: LanguageModel,
    against: LanguageModel,
    token_ids: Sequence[int],
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Progress | None = None,
) -> Comparison:
    """As `evaluate`, of two models side by side; also raises RequestError if their vocabularies differ."""
    targets = np.asarray(token_ids, np.int64)
    nll, against_nll, kl = (np.empty(len(targets)) for _ in range(3))
    same_top = np.empty(len(targets), np.bool_)
    for place, (log_p, log_q) in _predictions([model, against], targets, chunk_tokens, progress):
        nll[place], against_nll[place] = _nll(log_p, targets[place]), _nll(log_q, targets[place])
        kl[place] = kl_divergence(log_q, log_p)
        same_top[place] = log_p.argmax(-1) == log_q.argmax(-1)
    return Comparison(Evaluation(nll, chunk_tokens), Evaluation(against_nll, chunk_tokens), kl, same_top)


def _predictions(
    models: Sequence[LanguageModel],
    token_ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    chunk_tokens: int,
    progress: Progress | None,
) -> Iterator[tuple[slice, list[Float64]]]:
    """(a place in the text, the log-probabilities that each model gives there, [len(place), vocab_size])."""
    chunks = _chunks([model.config for model in models], token_ids, chunk_tokens)
    progress = progress or NoProgress()
    progress.start("evaluating", len(token_ids), "tokens")
    step = max(1, BLOCK_ELEMENTS // models[0].config.vocab_size)
    for number, chunk in enumerate(chunks):
        start = number * chunk_tokens
        # Row i predicts token i of the chunk; the row after the last one predicts nothing that is known.
        logits = [model.logits(chunk)[:-1] for model in models]
        for first in range(0, len(chunk) - 1, step):
            end = min(first + step, len(chunk) - 1)
            yield slice(start + first, start + end), [_log_softmax(one[first:end], start + first) for one in logits]
            progress.advance(end - first)
    progress.finish()


def sequences(config: ModelConfig, token_ids: Sequence[int], chunk_tokens: int = CHUNK_TOKENS) -> list[list[int]]:
    """What `evaluate` and `compare` run: BOS and a chunk of the text each. Raises RequestError as they do."""
    return _chunks([config], np.asarray(token_ids, np.int64), chunk_tokens)


def _chunks(
    configs: Sequence[ModelConfig], token_ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]], chunk_tokens: int
) -> list[list[int]]:
    bos = _check_request(configs, len(token_ids), chunk_tokens)
    starts = range(0, len(token_ids), chunk_tokens)
    return [[bos, *token_ids[start : start + chunk_tokens].tolist()] for start in starts]


def _check_request(configs: Sequence[ModelConfig], tokens: int, chunk_tokens: int) -> int:
    """The BOS that all models share. Raises RequestError."""
    sizes = [config.vocab_size for config in configs]
    if len(set(sizes)) > 1:
        raise RequestError("vocabularies", expected="two of one size", got=" and ".join(str(size) for size in sizes))
    if len({config.bos_token_id for config in configs}) > 1:
        got = " and ".join(str(config.bos_token_id) for config in configs)
        raise RequestError("vocabularies", expected="two with one bos_token_id", got=got)
    bos = configs[0].bos_token_id
    if bos is None:
        raise RequestError("config.json: bos_token_id", expected="a token id, which each chunk starts with", got="none")
    context = min(config.max_position_embeddings for config in configs)
    if not 1 <= chunk_tokens < context:
        raise RequestError(
            "chunk tokens",
            expected=f"1 to {context - 1} (with BOS at most max_position_embeddings, {context})",
            got=str(chunk_tokens),
        )
    if tokens == 0:
        raise RequestError("text", expected="at least one token", got="none")
    return bos


def _log_softmax(logits: Logits, place: int) -> Float64:
    if not np.isfinite(logits).all():
        token = place + int(np.argwhere(~np.isfinite(logits))[0, 0])
        raise EngineError(f"logits of token {token} of the text", expected="finite numbers", got="inf or NaN")
    return log_softmax(logits)


def _nll(log_p: Float64, targets: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Float64:
    nll: Float64 = -log_p[np.arange(len(targets)), targets]
    return nll


def _standard_error(values: Float64 | Bools) -> float:
    """Of the mean of independent values; NaN for a single one."""
    count = len(values)
    return math.sqrt(values.var(dtype=np.float64) / (count - 1)) if count > 1 else math.nan


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
