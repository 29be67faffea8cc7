"""Reading a small JSON file from a stranger: every way in which it can be bad gives one clear error."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from dsv3export.errors import UserError


def read_json_object(
    path: Path, error: type[UserError], *, max_bytes: int, unique_keys: bool = False
) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Args:
        path: The file.
        error: The class of the error to raise.
        max_bytes: A longer file is refused before it is read.
        unique_keys: Refuse an object, at any depth, that has one key twice.

    Raises:
        UserError: of class `error`; the file is missing, no file, too long, not UTF-8, not JSON, or no object.
    """
    data = read_small_file(path, error, max_bytes=max_bytes)
    return parse_json_object(data, str(path), error, unique_keys=unique_keys)


def parse_json_object(data: bytes, what: str, error: type[UserError], *, unique_keys: bool = False) -> dict[str, Any]:
    """As `read_json_object`, of bytes; `what` names them in messages."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise error(what, expected="UTF-8 text", got=f"byte 0x{data[bad.start]:02x} at offset {bad.start}") from None
    hook = _unique_pairs if unique_keys else None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=hook)
    except json.JSONDecodeError as bad:
        got = f"{bad.msg} at line {bad.lineno} column {bad.colno}"
        raise error(what, expected="valid JSON", got=got) from None
    except (ValueError, RecursionError) as bad:
        reason = "arrays or objects nested too deeply" if isinstance(bad, RecursionError) else str(bad)
        raise error(what, expected="valid JSON", got=reason) from None
    if not isinstance(value, dict):
        raise error(what, expected="a JSON object {...}", got=f"a JSON {_json_type(value)}")
    return value


def read_small_file(path: Path, error: type[UserError], *, max_bytes: int) -> bytes:
    """All bytes of the regular file at `path`; anything else there is an error of class `error`."""
    check_regular_file(path, error)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as bad:
        raise error(str(path), expected="a readable file", got=bad.strerror or str(bad)) from None
    if len(data) > max_bytes:
        raise error(str(path), expected=f"at most {max_bytes} bytes", got="a longer file")
    return data


def check_regular_file(path: Path, error: type[UserError]) -> None:
    """Raises an error of class `error` unless `path` is a regular file, or a symbolic link to one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        broken = os.path.islink(path)
        got = "a symbolic link to a file that does not exist" if broken else "nothing there"
        raise error(str(path), expected="a file", got=got) from None
    except (OSError, ValueError) as bad:
        got = getattr(bad, "strerror", None) or str(bad)
        raise error(str(path), expected="a readable file", got=got) from None
    if not stat.S_ISREG(mode):
        got = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise error(str(path), expected="a file", got=got)


def shown(value: object, limit: int = 60) -> str:
    """`value` as it stands in a JSON file, in printable ASCII, cut to `limit` characters: for messages."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no JSON number")


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(value)]
