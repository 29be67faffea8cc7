"""What gets one scheme: a component of some layers, or the head; and recipes that give each its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dsv3export.config import ModelConfig
from dsv3export.recipe import LAYER_COMPONENTS, Component, LayerRange, Recipe, Scheme


@dataclass(frozen=True)
class Unit:
    """A component of the decoder layers `layers`, ascending; of the head, which is in none, ``()``."""

    component: Component
    layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``routed_experts 1-3``, ``attention 0``, ``head``."""
        if not self.layers:
            return self.component
        first, last = self.layers[0], self.layers[-1]
        return f"{self.component} {first}" if first == last else f"{self.component} {first}-{last}"


def model_units(config: ModelConfig, layer_groups: int) -> list[Unit]:
    """The units of a model whose decoder layers are cut into runs of about equal length.

    In the order of computation by their first layer, the head last.

    Args:
        layer_groups: How many runs; 1 gives units of whole components, the number of layers one unit a layer.
    """
    count = config.num_hidden_layers
    groups = min(layer_groups, count)
    bounds = [count * i // groups for i in range(groups + 1)]
    found = []
    for start, stop in pairwise(bounds):
        for component in LAYER_COMPONENTS:
            layers = tuple(layer for layer in range(start, stop) if has_component(config, component, layer))
            if layers:
                found.append(Unit(component, layers))
    return [*found, Unit("head")]


def has_component(config: ModelConfig, component: Component, layer: int) -> bool:
    """Whether a decoder layer has weights of a component."""
    if component == "attention":
        return True
    if component == "shared_experts":
        return config.is_moe_layer(layer) and config.n_shared_experts > 0
    return config.is_moe_layer(layer) == (component == "routed_experts")


def with_units(base: Recipe, schemes: Mapping[Unit, Scheme]) -> Recipe:
    """A recipe in which these units have schemes of their own; the rest is as in `base`, which has no groups of layers.

    A scheme that most of the layers of a component have is said of the component, the others of ranges of layers.
    """
    by_layer: dict[Component, dict[int, Scheme]] = {}
    components = dict(base.components)
    for unit, scheme in schemes.items():
        if unit.layers:
            by_layer.setdefault(unit.component, {}).update(dict.fromkeys(unit.layers, scheme))
        else:
            components[unit.component] = scheme
    return replace(base, components=components, ranges=_ranges(by_layer))


def folded(recipe: Recipe, config: ModelConfig) -> Recipe:
    """The same for every layer of a model, with the commonest scheme of each component said of the component itself."""
    components = dict(recipe.components)
    by_layer: dict[Component, dict[int, Scheme]] = {}
    count = config.num_hidden_layers
    for component in LAYER_COMPONENTS:
        layers = [layer for layer in range(count) if has_component(config, component, layer)]
        schemes = {layer: recipe.scheme(component, layer, count) for layer in layers}
        if schemes:
            components[component] = Counter(schemes.values()).most_common(1)[0][0]
            by_layer[component] = {
                layer: scheme for layer, scheme in schemes.items() if scheme != components[component]
            }
    return replace(recipe, components=components, first_layers=None, last_layers=None, ranges=_ranges(by_layer))


def _ranges(by_layer: Mapping[Component, Mapping[int, Scheme]]) -> tuple[LayerRange, ...]:
    """Runs of neighbouring layers with one scheme; components that have the same run share an entry."""
    found: dict[tuple[int, int], dict[Component, Scheme]] = {}
    for component, schemes in by_layer.items():
        for start, stop in _runs(schemes):
            found.setdefault((start, stop), {})[component] = schemes[start]
    return tuple(LayerRange(start, stop, components) for (start, stop), components in sorted(found.items(), key=_place))


def _runs(schemes: Mapping[int, Scheme]) -> Iterable[tuple[int, int]]:
    layers: Sequence[int] = sorted(schemes)
    start = 0
    for i in range(1, len(layers) + 1):
        ends = i == len(layers) or layers[i] != layers[i - 1] + 1 or schemes[layers[i]] != schemes[layers[start]]
        if ends:
            yield layers[start], layers[i - 1] + 1
            start = i


def _place(entry: tuple[tuple[int, int], object]) -> tuple[int, int]:
    return entry[0]
