"""Tokens and their log-probabilities as the protocol writes them."""

from __future__ import annotations

from collections.abc import Iterable

from dsv3export.runtime.detokenize import token_bytes
from dsv3export.runtime.logprobs import TokenLogprobs
from dsv3export.runtime.tokenizer import Tokenizer
from dsv3export.serve.schemas import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob


class TokenTexts:
    """How single tokens are shown; an engine without a tokenizer shows ids."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def data(self, token_id: int) -> bytes:
        """The token's bytes, which need not be whole characters."""
        token = self._tokenizer.token(token_id) if self._tokenizer else str(token_id)
        return token_bytes(token or "")

    def text(self, token_id: int) -> str:
        """The token's text; bytes that are no whole character become U+FFFD."""
        return self.data(token_id).decode("utf-8", "replace")

    def chat(self, logprobs: Iterable[TokenLogprobs]) -> ChatLogprobs:
        """Of a chat's choice."""
        content = []
        for each in logprobs:
            top = [self._top(token, value) for token, value in each.top]
            content.append(TokenLogprob(**self._top(each.token_id, each.logprob).model_dump(), top_logprobs=top))
        return ChatLogprobs(content=content)

    def completion(self, logprobs: Iterable[TokenLogprobs], offset: int = 0) -> CompletionLogprobs:
        """Of a completion's choice; `offset` is that of the first token in the choice's text."""
        tokens, values, tops, offsets = [], [], [], []
        for each in logprobs:
            tokens.append(self.text(each.token_id))
            values.append(each.logprob)
            tops.append({self.text(token): value for token, value in reversed(each.top)})
            offsets.append(offset)
            offset += len(tokens[-1])
        return CompletionLogprobs(tokens=tokens, token_logprobs=values, top_logprobs=tops, text_offset=offsets)

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(token=self.text(token_id), logprob=logprob, bytes=list(self.data(token_id)))
