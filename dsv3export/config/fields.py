"""Typed reading of the keys of a JSON object, with errors that name the key, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsv3export.config.json_file import shown
from dsv3export.errors import ConfigError


class Fields:
    """The keys of one JSON object.

    A key with value null counts as absent, as in Hugging Face's config classes. An absent key gives the default;
    without a default it is an error.
    """

    def __init__(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        self.values = values
        self.source = source
        self.prefix = prefix

    def error(self, key: str, expected: str, fix: str = "") -> ConfigError:
        """The error for `key`: what was expected, and what stands there."""
        got = shown(self.values[key]) if key in self.values else "no such key"
        return ConfigError(f"{self.source}: {self.prefix}{key}", expected=expected, got=got, fix=fix)

    def present(self, key: str) -> bool:
        """Whether `key` is there with a value other than null."""
        return self.values.get(key) is not None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in low..high; JSON's true, 1.0 and "1" are none."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def nullable_integer(self, key: str, low: int, high: int) -> int | None:
        """As `integer`, but null is a value of its own; the key must be there."""
        if key in self.values and self.values[key] is None:
            return None
        if key not in self.values:
            raise self.error(key, f"null or an integer from {low} to {high}")
        return self.integer(key, low, high)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in low..high, as float; an integer will do, true and "1.0" will not."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"a number from {low:g} to {high:g}")
        if not low <= value <= high or not math.isfinite(value):
            raise self.error(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """Either true or false; 0, 1 and "false" are neither."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        """One of the strings `allowed`."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if value not in allowed or not isinstance(value, str):
            raise self.error(key, " or ".join(f'"{name}"' for name in allowed))
        return value

    def must_be(self, key: str, value: object, why: str) -> None:
        """Refuses any value of `key` but `value` (or none at all): other values mean a model we do not compute."""
        got = self.values.get(key)
        if got is not None and (type(got) is not type(value) or got != value):
            raise self.error(key, f"{shown(value)} ({why})")

    def table(self, key: str) -> Fields | None:
        """The JSON object under `key`, or None if absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "null or a JSON object")
        return Fields(value, self.source, f"{self.prefix}{key}.")
