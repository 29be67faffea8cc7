"""Which tile a plugin takes: by what was measured on that device, where something was, else by its own preference.

A table of a device is data, ``plugins/tuning/<device>.json``, made by ``benchmarks/kernels.py --tune``:

    {"format": 1, "device": "NVIDIA H100 80GB HBM3", "made": {how, when, by which versions},
     "tiles":   [{"plugin", "inputs": [["BF16", [64, 7168]], ...], "attributes": {...}, "tile": {...}, times}],
     "choices": [{"op", "sizes": {"slots": 128, ...}, "value": 8, times}]}

Shapes between those that were measured take the nearest one's: the least sum of |log2| of the sizes' quotients.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from dsv3export.errors import InternalError
from dsv3export.plugins.kernels.plugin import Attributes, Plugin, TensorType, Tile
from dsv3export.plugins.kernels.sizes import known

DIRECTORY = Path(__file__).resolve().parent.parent / "tuning"
FORMAT = 1
# A size beyond this factor of the measured one says nothing of it.
_FAR = 4.0

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class TunedTile:
    """The fastest tile of a plugin for some types, and the microseconds of it and of the default."""

    plugin: str
    inputs: Shapes
    attributes: tuple[tuple[str, int | str], ...]
    tile: Tile
    microseconds: float
    default_microseconds: float


@dataclass(frozen=True)
class TunedChoice:
    """The best value of a number that an op is cut by, e.g. the parts of a sequence, for some sizes."""

    op: str
    sizes: tuple[tuple[str, int], ...]
    value: int
    microseconds: float
    default_microseconds: float


@dataclass(frozen=True)
class Tuning:
    """What was measured on a device; an empty one elsewhere.

    Args:
        device: The driver's name of it.
        made: How, when and with which versions.
    """

    device: str
    made: Mapping[str, str] = field(default_factory=dict)
    tiles: tuple[TunedTile, ...] = ()
    choices: tuple[TunedChoice, ...] = ()

    def tile_index(self, plugin: Plugin, inputs: Sequence[TensorType], attributes: Attributes, target: int = 90) -> int:
        """Which of a plugin's tiles to take; one that the plugin no longer has does not count.

        Args:
            target: The device's compute capability, for the plugin's own preference.
        """
        shapes, given = shapes_of(inputs), work_of(attributes)
        near = [
            (apart, plugin.tiles.index(entry.tile))
            for entry in self.tiles
            if entry.plugin == plugin.name and entry.attributes == given and entry.tile in plugin.tiles
            if (apart := _shapes_apart(entry.inputs, shapes)) is not None
        ]
        return min(near)[1] if near else plugin.prefer(inputs, attributes, target)

    def choice(self, op: str, sizes: Mapping[str, int], default: int) -> int:
        """The best value for an op at these sizes, or `default` where nothing near was measured."""
        near = [
            (apart, entry.value)
            for entry in self.choices
            if entry.op == op and [name for name, _ in entry.sizes] == sorted(sizes)
            if (apart := _apart((size, sizes[name]) for name, size in entry.sizes)) is not None
        ]
        return min(near)[1] if near else default

    def merged(self, newer: Tuning) -> Tuning:
        """Both tables' entries, `newer`'s where both have one for the same types or sizes."""
        tiles = {(entry.plugin, entry.inputs, entry.attributes): entry for entry in (*self.tiles, *newer.tiles)}
        choices = {(entry.op, entry.sizes): entry for entry in (*self.choices, *newer.choices)}
        return Tuning(newer.device, newer.made, tuple(tiles.values()), tuple(choices.values()))

    def to_json(self) -> dict[str, Any]:
        """As in the file; entries in an order of their own, so that a new run changes few lines."""
        tiles = [asdict(entry) | {"attributes": dict(entry.attributes)} for entry in self.tiles]
        choices = [asdict(entry) | {"sizes": dict(entry.sizes)} for entry in self.choices]
        return {
            "format": FORMAT,
            "device": self.device,
            "made": dict(self.made),
            "tiles": sorted(tiles, key=lambda entry: json.dumps([entry["plugin"], entry["inputs"]])),
            "choices": sorted(choices, key=lambda entry: json.dumps([entry["op"], entry["sizes"]])),
        }

    @classmethod
    def from_json(cls, document: Any) -> Tuning:
        """Raises InternalError where the document is no table of this format: it comes with the program."""
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}")
            return cls(
                str(document["device"]),
                {str(name): str(text) for name, text in document["made"].items()},
                tuple(_tuned_tile(entry) for entry in document["tiles"]),
                tuple(_tuned_choice(entry) for entry in document["choices"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InternalError(f"a tuning table is damaged: {error!r}") from error


def tuning_for(device: str) -> Tuning:
    """The table of a device by the driver's name of it, or an empty one."""
    return _read(table_path(device)) or Tuning(device)


def table_path(device: str, directory: Path = DIRECTORY) -> Path:
    """Where the table of a device is, e.g. ``nvidia-h100-80gb-hbm3.json``."""
    return directory / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def write_tuning(tuning: Tuning, directory: Path = DIRECTORY) -> Path:
    """Adds to the table of a device, or begins one; returns its path."""
    path = table_path(tuning.device, directory)
    old = _read(path)
    table = tuning if old is None else old.merged(tuning)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(table.to_json(), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    _read.cache_clear()
    return path


def shapes_of(inputs: Sequence[TensorType]) -> Shapes:
    """Types as a table has them; every size must be known."""
    return tuple((each.dtype, tuple(known(size) for size in each.shape)) for each in inputs)


def _shapes_apart(measured: Shapes, given: Shapes) -> float | None:
    if [(dtype, len(shape)) for dtype, shape in measured] != [(dtype, len(shape)) for dtype, shape in given]:
        return None
    pairs = zip(measured, given, strict=True)
    return _apart(pair for (_, mine), (_, other) in pairs for pair in zip(mine, other, strict=True))


def _apart(pairs: Iterable[tuple[int, int]]) -> float | None:
    """Sum of |log2(a / b)|; None where a pair is too far apart."""
    total = 0.0
    for first, second in pairs:
        if first != second:
            if not first or not second or max(first, second) > _FAR * min(first, second):
                return None
            total += abs(math.log2(first / second))
    return total


def work_of(attributes: Attributes) -> tuple[tuple[str, int | str], ...]:
    """Attributes that decide how much work there is; a float, such as a softmax's scale, does not."""
    return tuple(sorted((name, value) for name, value in attributes.items() if not isinstance(value, float)))


def _tuned_tile(entry: Mapping[str, Any]) -> TunedTile:
    inputs = tuple((str(dtype), tuple(int(size) for size in shape)) for dtype, shape in entry["inputs"])
    times = float(entry["microseconds"]), float(entry["default_microseconds"])
    return TunedTile(str(entry["plugin"]), inputs, work_of(entry["attributes"]), Tile(**entry["tile"]), *times)


def _tuned_choice(entry: Mapping[str, Any]) -> TunedChoice:
    sizes = tuple(sorted((str(name), int(size)) for name, size in entry["sizes"].items()))
    times = float(entry["microseconds"]), float(entry["default_microseconds"])
    return TunedChoice(str(entry["op"]), sizes, int(entry["value"]), *times)


@lru_cache
def _read(path: Path) -> Tuning | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return Tuning.from_json(json.loads(text))
    except ValueError as error:
        raise InternalError(f"{path} is no JSON: {error}") from error
