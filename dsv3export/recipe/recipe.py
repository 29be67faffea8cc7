"""A recipe: the scheme of each component, from a preset, a TOML file or an engine's manifest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from dsv3export.config.json_file import read_small_file
from dsv3export.errors import InternalError
from dsv3export.recipe.presets import preset
from dsv3export.recipe.scheme import (
    CACHE_FORMATS,
    COMPONENTS,
    FORMATS,
    LAYER_COMPONENTS,
    OPTION_KEYS,
    PRECISIONS,
    CacheFormat,
    Component,
    Format,
    Precision,
    RecipeError,
    Scheme,
    check_choice,
    check_option,
)
from dsv3export.recipe.table import Table

Schemes = Mapping[Component, Scheme]

DESCRIPTION_COLUMNS = ("component", "layers", "precision")
_KEYS = ("precision", "components", "layers", "first_layers", "last_layers", "cache")
_RANGE_KEYS = ("start", "stop", "components")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class LayerGroup:
    """Schemes that hold for the first or last `count` decoder layers only."""

    count: int
    components: Schemes


@dataclass(frozen=True)
class LayerRange:
    """Schemes that hold for the decoder layers from `start` to before `stop` only."""

    start: int
    stop: int
    components: Schemes


@dataclass(frozen=True)
class Recipe:
    """What precision each component gets.

    Attributes:
        precision: The preset that it starts from.
        components: The scheme of every component.
        first_layers, last_layers: Layers with schemes of their own; where both hold, `first_layers` does.
        cache: What the latent cache is kept in.
        ranges: Layers with schemes of their own; they win over `first_layers` and `last_layers`, and the first range
            that has a layer and a component wins over those that follow.
        source: Where it came from, for messages.
    """

    precision: Precision
    components: Schemes
    first_layers: LayerGroup | None = None
    last_layers: LayerGroup | None = None
    cache: CacheFormat = "fp32"
    ranges: tuple[LayerRange, ...] = ()
    source: str = field(default="recipe", compare=False)

    @classmethod
    def for_precision(cls, precision: str, calibrated: bool = False) -> Recipe:
        """The preset of that name; `calibrated` as in `from_json`. Raises RecipeError."""
        return cls.from_json({"precision": precision}, calibrated=calibrated)

    @classmethod
    def from_toml(cls, path: str | Path, calibrated: bool = False) -> Recipe:
        """Reads a recipe file, as described in the package's docstring; `calibrated` as in `from_json`.

        Raises RecipeError.
        """
        return cls.from_json(_read_toml(Path(path)), str(path), calibrated)

    @classmethod
    def from_json(cls, value: object, source: str = "recipe", calibrated: bool = False) -> Recipe:
        """From what `to_json` made; what is not said is as in the preset. Raises RecipeError, which `source` begins.

        With `calibrated`, integers whose method is not said are chosen by gptq: there is a calibration text.
        """
        table = Table(value, source, "", _KEYS)
        precision = cast("Precision", table.choice("precision", PRECISIONS))
        base = preset(precision, calibrated)
        schemes = base | _schemes(table.table("components", COMPONENTS), base, calibrated)
        first, last = (_group(table, key, schemes, calibrated) for key in ("first_layers", "last_layers"))
        cache = cast("CacheFormat", table.choice("cache", CACHE_FORMATS) if "cache" in table else CACHE_FORMATS[0])
        ranges = tuple(_range(entry, schemes, calibrated) for entry in table.tables("layers", _RANGE_KEYS))
        return cls(precision, schemes, first, last, cache, ranges, source)

    def with_cache(self, cache: str) -> Recipe:
        """The same with another cache format. Raises RecipeError for one that does not exist."""
        return replace(self, cache=cast("CacheFormat", check_choice("cache", cache, CACHE_FORMATS)))

    def with_schemes(self, change: Callable[[Scheme], Scheme]) -> Recipe:
        """The same with each scheme, of groups of layers too, as `change` makes it."""
        return replace(
            self,
            components=_changed(self.components, change),
            first_layers=_changed_group(self.first_layers, change),
            last_layers=_changed_group(self.last_layers, change),
            ranges=tuple(replace(each, components=_changed(each.components, change)) for each in self.ranges),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything spelled out, in a fixed order, so that other defaults cannot change what it means."""
        components = _spelled(self.components)
        record: dict[str, Any] = {"precision": self.precision, "cache": self.cache, "components": components}
        if self.ranges:
            record["layers"] = [
                {"start": each.start, "stop": each.stop, "components": _spelled(each.components)}
                for each in self.ranges
            ]
        for key, group in (("first_layers", self.first_layers), ("last_layers", self.last_layers)):
            if group is not None:
                record[key] = {"count": group.count, "components": _spelled(group.components)}
        return record

    def scheme(self, component: Component, layer: int | None, layers: int) -> Scheme:
        """The scheme of a component.

        Args:
            layer: The layer it belongs to; None for head and embedding. The MTP layers, which follow the decoder's
                (`layer` >= `layers`), belong to no group.
            layers: How many decoder layers the model has.
        """
        if component not in LAYER_COMPONENTS:
            return self.components[component]
        if layer is None:
            raise InternalError(f"{component} belongs to a layer")
        for each in self.ranges:
            if each.start <= layer < min(each.stop, layers) and component in each.components:
                return each.components[component]
        first, last = self.first_layers, self.last_layers
        if first and layer < first.count and component in first.components:
            return first.components[component]
        if last and layers - last.count <= layer < layers and component in last.components:
            return last.components[component]
        return self.components[component]

    def schemes(self) -> Iterator[tuple[Component, Scheme]]:
        """Every scheme, with its component; one that holds for some layers only too."""
        yield from self.components.items()
        for group in (*self.ranges, self.first_layers, self.last_layers):
            if group is not None:
                yield from group.components.items()

    def weight_schemes(self) -> Iterator[tuple[Component, Scheme]]:
        """Those of components that are multiplied with: an embedding is looked up."""
        return (pair for pair in self.schemes() if pair[0] != "embedding")

    def unrounded(self) -> Recipe:
        """The same without rounding of activations to int8."""
        return self.with_schemes(
            lambda scheme: replace(scheme, activations="none") if scheme.activations == "int8" else scheme
        )

    def check_layers(self, layers: int) -> None:
        """Raises RecipeError if the recipe speaks of more layers than the model has."""
        for key, group in (("first_layers", self.first_layers), ("last_layers", self.last_layers)):
            if group is not None and group.count > layers:
                expected = f"at most the model's {layers} layers"
                raise RecipeError(f"{self.source}: {key}.count", expected=expected, got=str(group.count))
        for place, each in enumerate(self.ranges):
            if each.stop > layers:
                expected = f"at most the model's {layers} layers"
                raise RecipeError(f"{self.source}: layers[{place}].stop", expected=expected, got=str(each.stop))

    def describe(self) -> list[tuple[str, str, str]]:
        """For people, a row for each scheme of each component: (component, layers, scheme)."""
        rows: list[tuple[str, str, str]] = []
        groups = [(f"{each.start} to {each.stop - 1}", each.components) for each in self.ranges]
        groups += [
            (f"{name} {group.count}", group.components)
            for name, group in (("first", self.first_layers), ("last", self.last_layers))
            if group is not None
        ]
        for component in COMPONENTS:
            special = [(name, schemes[component]) for name, schemes in groups if component in schemes]
            rows += [(component, name, scheme.describe()) for name, scheme in special]
            rows.append((component, "others" if special else "all", self.components[component].describe()))
        return rows


def _changed(schemes: Schemes, change: Callable[[Scheme], Scheme]) -> Schemes:
    return {component: change(scheme) for component, scheme in schemes.items()}


def _changed_group(group: LayerGroup | None, change: Callable[[Scheme], Scheme]) -> LayerGroup | None:
    return None if group is None else replace(group, components=_changed(group.components, change))


def _group(table: Table, key: str, schemes: Schemes, calibrated: bool) -> LayerGroup | None:
    if key not in table:
        return None
    group = table.table(key, ("count", "components"))
    return LayerGroup(group.count("count"), _layer_schemes(group, schemes, calibrated))


def _range(table: Table, schemes: Schemes, calibrated: bool) -> LayerRange:
    start = table.count("start", minimum=0)
    return LayerRange(start, table.count("stop", minimum=start + 1), _layer_schemes(table, schemes, calibrated))


def _layer_schemes(table: Table, base: Schemes, calibrated: bool) -> dict[Component, Scheme]:
    components = table.table("components", LAYER_COMPONENTS)
    if not components.keys():
        expected = f"tables for some of {', '.join(LAYER_COMPONENTS)}"
        raise RecipeError(components.where(), expected=expected, got="none")
    return _schemes(components, base, calibrated)


def _schemes(components: Table, base: Schemes, calibrated: bool) -> dict[Component, Scheme]:
    """The schemes of the components that are mentioned, in the order of `COMPONENTS`."""
    mentioned = (component for component in COMPONENTS if component in components)
    return {component: _scheme(components, component, base[component], calibrated) for component in mentioned}


def _scheme(components: Table, component: Component, base: Scheme, calibrated: bool) -> Scheme:
    table = components.table(component, ("format", *OPTION_KEYS))
    format, options = base.format, base.options()
    if "format" in table:
        format, options = cast("Format", table.choice("format", FORMATS[component])), {}
    for key in table.keys():  # noqa: SIM118 (a Table is no mapping)
        if key != "format":
            options[key] = check_option(table.where(key), format, key, table.value(key))
    return Scheme.of(format, options, calibrated)


def _spelled(schemes: Schemes) -> dict[str, dict[str, object]]:
    return {
        component: {"format": schemes[component].format, **schemes[component].options()}
        for component in COMPONENTS
        if component in schemes
    }


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    data = read_small_file(path, RecipeError, max_bytes=_MAX_BYTES)
    try:
        values: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as bad:
        got = f"byte 0x{data[bad.start]:02x} at offset {bad.start}"
        raise RecipeError(str(path), expected="UTF-8 text", got=got) from None
    except (ValueError, RecursionError) as bad:
        # ValueError also for a number of thousands of digits.
        reason = "tables nested too deeply" if isinstance(bad, RecursionError) else str(bad)
        raise RecipeError(str(path), expected="valid TOML", got=reason) from None
    return values
