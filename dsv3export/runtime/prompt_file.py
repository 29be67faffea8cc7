"""A file of prompts, one a line: text, or token ids as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dsv3export.config.json_file import shown
from dsv3export.errors import RequestError
from dsv3export.runtime.requests import Limits
from dsv3export.runtime.text_file import read_text


class FilePrompt(NamedTuple):
    """A prompt; `text` is None for one that was given as token ids."""

    text: str | None
    ids: list[int]


def read_prompt_file(path: Path, limits: Limits, encode: Callable[[str], list[int]]) -> list[FilePrompt]:
    """The prompts of a UTF-8 file; empty lines are left out.

    A line that begins with ``[`` is an array of token ids, one that begins with ``{`` an object whose only key is
    ``text`` or ``ids``; any other line is a text as it stands.

    Args:
        encode: Makes token ids of a text; only called where there is one.

    Raises:
        RequestError: There is no prompt, or one is none; the message names the line.
        TokenizerError: As `encode`.
    """
    found = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            text, ids = _prompt(line, f"{path}:{number}")
            if text is not None:
                ids = encode(text)
            found.append(FilePrompt(text, limits.check_ids(ids)))
    if not found:
        raise RequestError(str(path), expected="a prompt in each line", got="none")
    return found


def _prompt(line: str, where: str) -> tuple[str | None, list[int]]:
    """Text or ids of a line."""
    start = line.lstrip()[0]
    if start not in "[{":
        return line, []
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        kind = "a JSON array of token ids" if start == "[" else "a JSON object"
        raise RequestError(where, expected=kind, got=line[:40]) from None
    if start == "[":
        return None, value
    if len(value) == 1 and isinstance(value.get("text"), str):
        return value["text"], []
    if len(value) == 1 and isinstance(value.get("ids"), list):
        return None, value["ids"]
    raise RequestError(where, expected='{"text": "..."} or {"ids": [...]}', got=shown(value))
