"""Bytes of a model's weights at each precision, by unit and altogether."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3export.config import ModelConfig
from dsv3export.recipe import Precision, Recipe
from dsv3export.sensitivity.units import Unit
from dsv3export.sizing.weights import weight_bytes_by_layer


class UnitSizes:
    """Norms count with the layers that they are in.

    Args:
        recipes: What the model is at each precision.
    """

    def __init__(self, config: ModelConfig, recipes: Mapping[Precision, Recipe]) -> None:
        self._tables = {name: weight_bytes_by_layer(config, recipe) for name, recipe in recipes.items()}

    def unit(self, unit: Unit, precision: Precision) -> int:
        """Of a unit's weights."""
        table = self._tables[precision]
        return sum(table[unit.component, layer] for layer in unit.layers or (None,))

    def whole(self, precision: Precision) -> int:
        """Of all weights."""
        return sum(self._tables[precision].values())
