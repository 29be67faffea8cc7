"""Checks what a caller asks for before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsv3export.errors import RequestError
from dsv3export.runtime.tokenizer import Tokenizer

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Limits:
    """What an engine can take: token ids below `vocab_size`, at most `context` tokens in one sequence.

    `context_name` says where that limit comes from.
    """

    vocab_size: int
    context: int
    context_name: str

    def check_ids(self, ids: Sequence[object] | np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> list[int]:
        """The prompt as a list of Python ints. Raises RequestError."""
        if len(ids) == 0:
            raise RequestError("prompt", expected="at least one token", got="none")
        checked = []
        for position, token in enumerate(ids):
            if not isinstance(token, (int, np.integer)) or isinstance(token, bool) or not 0 <= token < self.vocab_size:
                raise RequestError(
                    f"token id {position} of the prompt", expected=f"an integer from 0 to {self.vocab_size - 1}",
                    got=repr(token),
                )  # fmt: skip
            checked.append(int(token))
        return checked

    def check_length(self, prompt: int, new: int) -> None:
        """Raises RequestError when `prompt` + `new` tokens do not fit."""
        if prompt + new > self.context:
            raise RequestError(
                "prompt and new tokens",
                expected=f"at most {self.context} tokens ({self.context_name})",
                got=f"{prompt} + {new} = {prompt + new}",
                fix="Shorten the prompt or ask for fewer new tokens.",
            )

    def new_tokens(self, prompt: int, asked: int | None) -> int:
        """How many tokens to generate: what was asked, or a default that fits. Raises RequestError."""
        if asked is not None and asked < 1:
            raise RequestError("max_new_tokens", expected="an integer of at least 1", got=repr(asked))
        new = max(1, min(DEFAULT_NEW_TOKENS, self.context - prompt)) if asked is None else asked
        self.check_length(prompt, new)
        return new


def stop_strings(stop: str | Sequence[str] | None, tokenizer: Tokenizer | None) -> list[str]:
    """The stop strings as a list. Raises RequestError, also when the engine has no tokenizer to find them with."""
    stops = [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
    if not all(stops):
        raise RequestError("stop", expected="strings that are not empty", got=repr(stop))
    if stops and tokenizer is None:
        raise RequestError("stop", expected="no stop strings, as this engine has no tokenizer", got=repr(stop))
    return stops
