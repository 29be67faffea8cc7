"""A small strict reader for JSON that may come from a stranger: every value is checked before it is used."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dsv3export.errors import EngineError

REBUILD = "Rebuild the engine with `dsv3export build`."
_MAX_INT = 2**63 - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class JsonValue:
    """One JSON value and the path that leads to it, e.g. ``engine.json: weights[3].offset``."""

    value: object
    where: str

    def fail(self, expected: str) -> NoReturn:
        """Raises EngineError that names the place, what was expected and what is there."""
        raise EngineError(self.where, expected=expected, got=_shown(self.value), fix=REBUILD)

    def fields(self, *keys: str) -> dict[str, JsonValue]:
        """An object with exactly these keys."""
        members = self.mapping()
        for key in keys:
            if key not in members:
                raise EngineError(self.where, expected=f"the key {key!r}", got="none", fix=REBUILD)
        for key in members:
            if key not in keys:
                raise EngineError(self.where, expected=f"only the keys {', '.join(keys)}", got=repr(key), fix=REBUILD)
        return members

    def mapping(self) -> dict[str, JsonValue]:
        """An object with any keys."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        return {key: JsonValue(value, f"{self.where}.{key}") for key, value in self.value.items()}

    def array(self) -> list[JsonValue]:
        if not isinstance(self.value, list):
            self.fail("an array")
        return [JsonValue(value, f"{self.where}[{i}]") for i, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.fail("a string")
        return self.value

    def choice(self, *choices: str) -> str:
        if self.text() not in choices:
            self.fail(" or ".join(repr(choice) for choice in choices))
        return self.text()

    def integer(self, minimum: int = 0, maximum: int = _MAX_INT) -> int:
        # bool is a subclass of int in Python, but not in JSON
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not minimum <= self.value <= maximum:
            self.fail(f"an integer from {minimum} to {maximum}")
        return self.value

    def integers(self) -> tuple[int, ...]:
        """An array of integers from 0 on."""
        if not isinstance(self.value, list):
            self.fail("an array")
        if not all(type(item) is int and 0 <= item <= _MAX_INT for item in self.value):
            return tuple(item.integer() for item in self.array())  # names the first bad one
        return tuple(self.value)

    def sha256(self) -> str:
        if not _SHA256.fullmatch(self.text()):
            self.fail("64 lower-case hexadecimal digits")
        return self.text()


def parse_json(data: bytes, where: str) -> JsonValue:
    """Parses strict JSON: UTF-8, no duplicate keys, no NaN or Infinity. Raises EngineError."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise EngineError(where, expected="JSON", got=str(error) or "too deeply nested", fix=REBUILD) from None
    return JsonValue(value, where)


def read_json(path: Path, limit: int) -> JsonValue:
    """Reads and parses a file of at most `limit` bytes. Raises EngineError."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise EngineError(str(path), expected="a readable file", got=error.strerror or str(error)) from None
    if len(data) > limit:
        raise EngineError(str(path), expected=f"at most {limit} bytes", got="more", fix=REBUILD)
    return parse_json(data, path.name)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key that occurs twice in one object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the constant {name}, which is not JSON")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
