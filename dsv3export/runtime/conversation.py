"""A conversation with one model: messages, and the tokens that they became."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.chat_template import ChatTemplate
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.generation import Piece

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dsv3export.runtime.request_maker import GenerationOptions


class Conversation:
    """Turns of user and assistant.

    A prompt begins with the very tokens of the turns before, as they were generated, wherever the template writes those
    turns as before: so an engine with a prefix cache computes only what is new.

    Args:
        engine: With a tokenizer.
        template: Of the same checkpoint.
        system: The system message, if any.

    Attributes:
        messages: As the template gets them.
        prompt_tokens: Of the last answer's prompt, all turns before it included.
    """

    def __init__(self, engine: Engine, template: ChatTemplate, system: str | None = None) -> None:
        if engine.tokenizer is None:
            raise TokenizerError("chat", expected="an engine with a tokenizer", got="none")
        self._engine, self._template, self._tokenizer = engine, template, engine.tokenizer
        self._system = system
        self.reset()

    @classmethod
    def with_engine(cls, engine: Engine, system: str | None = None) -> Conversation:
        """With the engine's own template. Raises TokenizerError where it has none."""
        return cls(engine, ChatTemplate.from_directory(engine.tokenizer_folder), system)

    def reset(self, system: str | None = None) -> None:
        """Begins anew, with another system message if one is given."""
        self._system = self._system if system is None else system
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self._known_text, self._known_ids = "", list[int]()
        self.prompt_tokens = 0

    def say(
        self, text: str, max_new_tokens: int | None = None, **how: Unpack[GenerationOptions]
    ) -> Generator[Piece, None, None]:
        """The answer to a message, as it comes. A caller that stops early keeps the part that it has seen.

        Raises RequestError, before the message counts, where it does not fit.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        rendered = self._template.render(messages)
        prompt = self._encoded(rendered)
        self.prompt_tokens = len(prompt)
        pieces = self._engine.stream(prompt, max_new_tokens, **how)
        return self._answer(messages, rendered, prompt, pieces)

    def _encoded(self, rendered: str) -> list[int]:
        if self._known_ids and rendered.startswith(self._known_text):
            rest = rendered[len(self._known_text) :]
            return self._known_ids + self._tokenizer.encode(rest, add_special_tokens=False)
        return self._tokenizer.encode(rendered)

    def _answer(
        self, messages: list[dict[str, str]], rendered: str, prompt: list[int], pieces: Iterator[Piece]
    ) -> Generator[Piece, None, None]:
        text, ids = "", list[int]()
        try:
            for piece in pieces:
                text += piece.text
                ids += piece.token_ids
                yield piece
        finally:
            self.messages = [*messages, {"role": "assistant", "content": text}]
            end = ""
            if ids and ids[-1] in self._engine.eos_ids:
                end = self._tokenizer.token(ids[-1]) or ""
            body = ids[:-1] if end else ids
            self._known_text, self._known_ids = rendered, prompt
            # Not where a stop string cut the text, or a character was left unfinished.
            if self._tokenizer.decode(body) == text:
                self._known_text, self._known_ids = rendered + text + end, prompt + ids


def check_role(messages: object) -> list[dict[str, str]]:
    """Messages from a file. Raises RequestError where they are not a list of roles and texts."""
    expected = "a list of objects with role and content, both texts"
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages", expected=expected, got=repr(messages)[:60])
    for message in messages:
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise RequestError("messages", expected=expected, got=repr(message)[:60])
    return messages
