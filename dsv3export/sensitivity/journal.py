"""What was measured so far, in a file that a killed search goes on from.

A line of JSON with the key of the search, then one for each recipe that was measured. A line is handed to the disk
before the next recipe is run, and one that is torn is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3export.compare.json_form import from_json, to_json
from dsv3export.engine.resources import resource_errors
from dsv3export.errors import RequestError
from dsv3export.recipe import Recipe

_KIND = "dsv3export sensitivity journal 1"


@dataclass(frozen=True)
class Measurement:
    """A recipe beside float32 on a text.

    Attributes:
        kl, kl_error: Mean KL(float32 || recipe) of the next token, in nats, and its standard error.
        kl_max: The largest one.
        perplexity_ratio: The recipe's perplexity over that of float32.
        top1: The share of tokens where both find the same one the likeliest.
        seconds: What measuring it took.
    """

    kl: float
    kl_error: float
    kl_max: float
    perplexity_ratio: float
    top1: float
    seconds: float


class MeasurementJournal:
    """What is known of a search with a key; with `path` None it is forgotten with the process.

    A file that belongs to another search is replaced.

    Raises RequestError for a file of another kind, ResourceError where it cannot be written.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self._path = path
        self._digest = _digest(key)
        self._known: dict[str, Measurement] = {}
        if path is not None and path.exists():
            self._read(path)
        if path is not None and not self._known:
            with resource_errors(path):
                path.write_text(json.dumps({"kind": _KIND, "key": self._digest}) + "\n", encoding="utf-8")

    def get(self, recipe: Recipe) -> Measurement | None:
        return self._known.get(_digest(recipe.to_json()))

    def add(self, recipe: Recipe, measurement: Measurement) -> None:
        """Remembers it, on the disk when this returns."""
        name = _digest(recipe.to_json())
        self._known[name] = measurement
        if self._path is None:
            return
        line = json.dumps({"recipe": name, "measured": to_json(measurement)}, allow_nan=False)
        with resource_errors(self._path), self._path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> None:
        with resource_errors(path):
            data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        head, *lines = whole.decode("utf-8", "replace").splitlines() or [""]
        title = _parsed(head)
        if title is None or title.get("kind") != _KIND:
            raise RequestError(str(path), expected="the journal of a search, or no file", got="another file",
                               fix="Give another name with --journal.")  # fmt: skip
        if title.get("key") != self._digest:
            return
        if len(whole) < len(data):  # torn: what is appended now must not continue that line
            os.truncate(path, len(whole))
        for line in lines:
            entry = _parsed(line)
            if entry is not None and isinstance(entry.get("recipe"), str):
                self._known[entry["recipe"]] = from_json(Measurement, entry.get("measured"), str(path))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
