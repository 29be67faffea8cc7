"""Strict reading of the tables of a recipe, whether they come from TOML or from JSON."""

from __future__ import annotations

from typing import Any

from dsv3export.config.json_file import shown
from dsv3export.recipe.scheme import Option, RecipeError, check_choice


class Table:
    """A table of a recipe with the keys `allowed`.

    Args:
        value: What stands there.
        source: The file, for messages.
        path: The table's own key with dots, "" for the whole recipe.
        allowed: The keys it may have.

    Raises RecipeError, here and in all methods, with the file, the key, what was expected and what is there.
    """

    def __init__(self, value: object, source: str, path: str, allowed: tuple[str, ...]) -> None:
        self._source, self._path = source, path
        if not isinstance(value, dict):
            raise RecipeError(self.where(), expected="a table", got=shown(value))
        self._values: dict[str, Any] = value
        for key in value:
            if key not in allowed:
                label = f"the key {shown(key)} in {path}" if path else f"the key {shown(key)}"
                raise RecipeError(f"{source}: {label}", expected=f"one of {', '.join(allowed)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def where(self, key: str = "") -> str:
        """The table, or one of its keys, as messages name it."""
        name = ".".join(part for part in (self._path, key) if part)
        return f"{self._source}: {name}" if name else self._source

    def keys(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(self._values)

    def value(self, key: str) -> object:
        """Whatever stands there; the caller knows that something does."""
        return self._values[key]

    def table(self, key: str, allowed: tuple[str, ...]) -> Table:
        """The table under `key`; an empty one if there is none."""
        path = f"{self._path}.{key}" if self._path else key
        return Table(self._values.get(key, {}), self._source, path, allowed)

    def tables(self, key: str, allowed: tuple[str, ...]) -> list[Table]:
        """The tables of the array under `key`, ``[[key]]`` each in TOML; none if there is no such key."""
        entries = self._values.get(key, [])
        if not isinstance(entries, list):
            raise RecipeError(self.where(key), expected="an array of tables", got=shown(entries))
        path = f"{self._path}.{key}" if self._path else key
        return [Table(entry, self._source, f"{path}[{place}]", allowed) for place, entry in enumerate(entries)]

    def choice(self, key: str, allowed: tuple[Option, ...]) -> Option:
        self._require(key, " or ".join(shown(choice) for choice in allowed))
        return check_choice(self.where(key), self._values[key], allowed)

    def count(self, key: str, minimum: int = 1) -> int:
        """A whole number of at least `minimum`; true and 1.0 are none."""
        expected = f"a whole number of at least {minimum}"
        self._require(key, expected)
        value = self._values[key]
        if type(value) is not int or value < minimum:
            raise RecipeError(self.where(key), expected=expected, got=shown(value))
        return value

    def _require(self, key: str, expected: str) -> None:
        if key not in self._values:
            raise RecipeError(self.where(key), expected=expected, got="no such key")
