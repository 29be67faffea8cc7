"""From what a caller asks for to a checked request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.detokenize import Detokenizer
from dsv3export.runtime.generation import Request
from dsv3export.runtime.requests import Limits, stop_strings
from dsv3export.runtime.sampling import Sampler, SamplingParams
from dsv3export.runtime.stopping import StopStrings
from dsv3export.runtime.text_stream import TextStream
from dsv3export.runtime.tokenizer import Tokenizer

TokenIds = Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.integer]]
Prompt = str | TokenIds

MAX_LOGPROBS = 100


class GenerationOptions(TypedDict, total=False):
    """How to generate; what is left out has its default.

    temperature, top_k, top_p, min_p, seed, frequency_penalty, presence_penalty, logit_bias: See `SamplingParams`; the
        default is greedy.
    stop: A string, or several, that end the text; they are not part of it.
    ignore_eos: Go on after an end-of-sequence token.
    logprobs: Give the log-probability of each token and of this many likeliest alternatives, 0 to 100.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool
    logprobs: int | None
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float] | None


class RequestMaker:
    """Checks and encodes what is asked of one engine.

    Args:
        limits: What the engine can take.
        tokenizer: None if it has none.
        eos_ids: The tokens that end a sequence.
        where: The engine, as errors name it.
    """

    def __init__(self, limits: Limits, tokenizer: Tokenizer | None, eos_ids: frozenset[int], where: str) -> None:
        self.limits, self.tokenizer, self.eos_ids = limits, tokenizer, eos_ids
        self._where = where

    def make(
        self, prompt: Prompt, index: int = 0, max_new_tokens: int | None = None, *,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int | None = None,
        stop: str | Sequence[str] | None = None, ignore_eos: bool = False, logprobs: int | None = None,
        frequency_penalty: float = 0.0, presence_penalty: float = 0.0, logit_bias: Mapping[int, float] | None = None,
    ) -> Request:  # fmt: skip
        """The request for one prompt; `index` is its place among those that share a seed.

        Raises:
            RequestError: Something asked for is out of range.
            TokenizerError: The prompt is text and the engine has no tokenizer.
        """
        params = SamplingParams(temperature, top_k, top_p, min_p, seed, frequency_penalty, presence_penalty, logit_bias)
        last = self.limits.vocab_size - 1
        if unknown := [token for token in logit_bias or () if not 0 <= token <= last]:
            raise RequestError("logit_bias", expected=f"token ids from 0 to {last}", got=str(unknown[0]))
        if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
            raise RequestError("logprobs", expected=f"0 to {MAX_LOGPROBS}", got=str(logprobs))
        ids = self.limits.check_ids(self._encode(prompt))
        detokenizer = Detokenizer(self.tokenizer) if self.tokenizer else None
        return Request(
            prompt=ids,
            max_new_tokens=self.limits.new_tokens(len(ids), max_new_tokens),
            sampler=Sampler(params, index),
            text=TextStream(detokenizer, StopStrings(stop_strings(stop, self.tokenizer))),
            eos_ids=frozenset() if ignore_eos else self.eos_ids,
            logprobs=logprobs,
        )

    def _encode(self, prompt: Prompt) -> TokenIds:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise TokenizerError(
                self._where, expected="a tokenizer, as the prompt is text", got="none",
                fix="Give token ids, or put tokenizer.json into the checkpoint and rebuild the engine.",
            )  # fmt: skip
        return self.tokenizer.encode(prompt)
