"""A file of prompts: one a line, or one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3export.errors import RequestError, UserError
from dsv3export.runtime.text_file import read_text

if TYPE_CHECKING:
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.generation import Request

_PROMPTS = ("prompt", "prompt_token_ids", "messages")
_OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "ignore_eos", "logprobs",
            "frequency_penalty", "presence_penalty")  # fmt: skip


@dataclass(frozen=True)
class FilePrompt:
    """A prompt of a file: its request, its id if it has one, and a digest of all that decides its result."""

    request: Request
    id: object
    digest: str


def read_prompts(path: Path, engine: Engine, how: dict[str, Any]) -> list[FilePrompt]:
    """All prompts of a file; `how` holds for those that do not say otherwise. Empty lines are left out.

    In a file that ends with .jsonl each line is an object with one of `prompt`, `prompt_token_ids` and `messages`; it
    may have an `id` and options. Raises RequestError, which names the line.
    """
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    as_json = path.suffix == ".jsonl"
    found = [
        _at(f"{path}, line {number}", line, as_json, place, engine, how) for place, (number, line) in enumerate(lines)
    ]
    if not found:
        raise RequestError(str(path), expected="prompts", got="empty lines")
    return found


def _at(where: str, line: str, as_json: bool, place: int, engine: Engine, how: dict[str, Any]) -> FilePrompt:
    try:
        return _prompt(_fields(line) if as_json else {"prompt": line}, place, engine, how)
    except UserError as error:
        raise RequestError(f"{where}: {error.what}", expected=error.expected, got=error.got, fix=error.fix) from None


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise RequestError("prompt", expected="a JSON object, as the file's name ends with .jsonl", got=line[:40])
    unknown = sorted(fields.keys() - {*_PROMPTS, *_OPTIONS, "id"})
    if unknown:
        raise RequestError(repr(unknown[0]), expected=f"one of {', '.join((*_PROMPTS, 'id', *_OPTIONS))}")
    given = [name for name in _PROMPTS if name in fields]
    if len(given) != 1:
        raise RequestError("prompt", expected=f"one of {', '.join(_PROMPTS)}", got=" and ".join(given) or "none")
    for name, (kinds, meaning) in _TYPES.items():
        value = fields.get(name)
        if name in fields and (not isinstance(value, kinds) or isinstance(value, bool) is not (kinds is bool)):
            raise RequestError(name, expected=meaning, got=repr(value)[:40])
    return fields


_TYPES: dict[str, tuple[Any, str]] = {
    "prompt": (str, "a text"),
    "prompt_token_ids": (list, "a list of token ids"),
    "messages": (list, "a list of messages"),
    "max_new_tokens": (int, "an integer"),
    "temperature": ((int, float), "a number"),
    "top_k": (int, "an integer"),
    "top_p": ((int, float), "a number"),
    "min_p": ((int, float), "a number"),
    "seed": (int, "an integer"),
    "frequency_penalty": ((int, float), "a number"),
    "presence_penalty": ((int, float), "a number"),
    "stop": ((str, list), "a text or a list of texts"),
    "ignore_eos": (bool, "true or false"),
    "logprobs": (int, "an integer"),
}


def _prompt(fields: dict[str, Any], place: int, engine: Engine, how: dict[str, Any]) -> FilePrompt:
    options = {**how, **{name: fields[name] for name in _OPTIONS if name in fields}}
    if "messages" in fields:
        from dsv3export.runtime.chat_template import ChatTemplate
        from dsv3export.runtime.conversation import check_role

        template = ChatTemplate.from_directory(engine.tokenizer_folder)
        prompt: Any = template.render(check_role(fields["messages"]))
    else:
        prompt = fields.get("prompt", fields.get("prompt_token_ids"))
    request = engine.requests.make(prompt, place, **options)
    said = json.dumps([request.prompt, place, options], sort_keys=True, default=list)
    return FilePrompt(request, fields.get("id"), hashlib.sha256(said.encode()).hexdigest()[:16])
