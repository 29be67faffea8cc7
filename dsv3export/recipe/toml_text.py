"""A recipe as the TOML file that `Recipe.from_toml` reads back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from dsv3export.recipe.recipe import Recipe


def recipe_toml(recipe: Recipe, comments: tuple[str, ...] = ()) -> str:
    """Everything spelled out, below `comments`, a line each."""
    record = recipe.to_json()
    lines = [f"# {comment}" for comment in comments]
    lines += [_pair(key, record[key]) for key in ("precision", "cache")]
    lines += _components("components", record["components"])
    for entry in record.get("layers", []):
        lines += ["", "[[layers]]", _pair("start", entry["start"]), _pair("stop", entry["stop"])]
        lines += _components("layers.components", entry["components"])
    for key in ("first_layers", "last_layers"):
        if key in record:
            lines += ["", f"[{key}]", _pair("count", record[key]["count"])]
            lines += _components(f"{key}.components", record[key]["components"])
    return "\n".join(lines) + "\n"


def _components(path: str, components: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    for component, options in components.items():
        yield from ("", f"[{path}.{component}]", *(_pair(key, value) for key, value in options.items()))


def _pair(key: str, value: object) -> str:
    # Strings, whole numbers and booleans are written as in JSON.
    return f"{key} = {json.dumps(value)}"
