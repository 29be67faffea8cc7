"""Recipes as TOML, for engines that differ from a preset in one thing."""

from __future__ import annotations

from dsv3export.recipe.scheme import COMPONENTS


def with_method(precision: str, method: str) -> str:
    """The preset of that name, each integer component quantised by `method`."""
    quantised = (component for component in COMPONENTS if component != "embedding")
    return f'precision = "{precision}"\n' + "".join(
        f'[components.{component}]\nmethod = "{method}"\n' for component in quantised
    )
