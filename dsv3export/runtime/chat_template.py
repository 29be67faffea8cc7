"""Messages to a prompt, by the checkpoint's own chat template. Templates come from strangers: see `chat_sandbox`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3export.engine.typed_json import read_json
from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.chat_sandbox.process import TemplateError, TemplateProcess

Message = Mapping[str, Any]

_MAX_BYTES = 16 << 20
_MAX_TEMPLATE = 1 << 20
_ADD = "Put a chat_template into tokenizer_config.json, or chat_template.jinja beside it, and rebuild the engine."


class ChatTemplate:
    """A compiled template, in a process of its own that ends with it.

    Args:
        source: Jinja text as Hugging Face checkpoints have it.
        special: What the template knows by name: bos_token, eos_token, ...
        where: The file, as errors name it.

    Raises:
        TokenizerError: The text is no template.
    """

    def __init__(self, source: str, special: Mapping[str, str], where: str) -> None:
        self._where, self._special = where, dict(special)
        if len(source) > _MAX_TEMPLATE:
            raise TokenizerError(
                where, expected=f"a template of at most {_MAX_TEMPLATE} characters", got=str(len(source))
            )
        try:
            self._process = TemplateProcess(source)
        except TemplateError as error:
            raise TokenizerError(where, expected="a Jinja template", got=str(error)) from None

    @classmethod
    def from_directory(cls, folder: Path) -> ChatTemplate:
        """Reads chat_template.jinja, or `chat_template` of chat_template.json or tokenizer_config.json, in that order.

        Raises TokenizerError where there is none, or where it is not what it should be.
        """
        settings = _settings(folder / "tokenizer_config.json")
        special = {name: text for name in ("bos_token", "eos_token", "pad_token", "unk_token")
                   if (text := _token_text(settings.get(name))) is not None}  # fmt: skip
        plain = folder / "chat_template.jinja"
        if plain.exists():
            return cls(plain.read_bytes().decode("utf-8", "replace"), special, str(plain))
        for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
            source = _default(_settings(path).get("chat_template"))
            if source is not None:
                return cls(source, special, f"{path}: chat_template")
        raise TokenizerError(str(folder), expected="a chat template", got="none", fix=_ADD)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt, special tokens written out.

        Raises RequestError where the template refuses the messages, fails on them, or takes too long.
        """
        names = {**self._special, **variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._process.render(names)
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestError(self._where, expected="messages that it takes", got=str(error)) from None


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return {name: field.value for name, field in read_json(path, _MAX_BYTES).mapping().items()}


def _default(template: object) -> str | None:
    """The template itself, or that named "default" of a list of named ones."""
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(token: object) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
