"""What TensorRT was told: the calls that define a network, as data. Saved as JSON and arrays, without pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from dsv3export.errors import InternalError

FORMAT = 1

Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True)
class Ref:
    """A TensorRT object by its number in the record. kind: tensor, layer, network, loop, conditional, config, ..."""

    kind: str
    index: int


@dataclass(frozen=True)
class Enum:
    """A member of one of TensorRT's enumerations, e.g. ``DataType.BF16``."""

    type: str
    name: str


@dataclass(frozen=True)
class ConstantRef:
    """Weights, by their place in `Record.constants`."""

    index: int


@dataclass(frozen=True)
class Opaque:
    """An argument that does not bear on the arithmetic, such as a progress monitor; only its class is kept."""

    type: str


Value: TypeAlias = "bool | int | float | str | Ref | Enum | ConstantRef | Opaque | tuple[Value, ...] | None"


@dataclass(frozen=True)
class Constant:
    """Bytes of a constant as TensorRT reads them. dtype: TensorRT's name, e.g. ``BF16``; `count` elements."""

    dtype: str
    count: int
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class Call:
    """`target.method(*args, **kwargs)`, and what came back."""

    target: Ref
    method: str
    args: tuple[Value, ...]
    kwargs: dict[str, Value]
    result: Value


@dataclass(frozen=True)
class Assignment:
    """`target.attribute = value`."""

    target: Ref
    attribute: str
    value: Value


Event: TypeAlias = "Call | Assignment"


@dataclass(frozen=True)
class TensorFact:
    """What TensorRT itself says of a tensor once the network is complete. shape: -1 where it is not static."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Record:
    """One network.

    Attributes:
        module: Name of TensorRT's module, e.g. ``tensorrt_rtx_bindings``.
        version: Its version.
        events: Calls on the network, its layers and tensors, in order.
        build: Calls on the builder's configuration and its profiles that preceded the build, in order.
        constants: What `ConstantRef` refers to.
        tensors: TensorRT's own account of each tensor that was seen, by the tensor's number.
        layers: Name of each layer, by the layer's number.
        engine_sha256: Digest of the serialized engine that was built of it; empty where none was.
    """

    module: str
    version: str
    events: list[Event] = field(default_factory=list)
    build: list[Event] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    tensors: dict[int, TensorFact] = field(default_factory=dict)
    layers: dict[int, str] = field(default_factory=dict)
    engine_sha256: str = ""

    def profiles(self) -> list[dict[str, tuple[Shape, Shape, Shape]]]:
        """Of each optimisation profile: input -> (least, likely, largest shape)."""
        calls = [event for event in self.build if isinstance(event, Call)]
        added = [call.args[0] for call in calls if call.method == "add_optimization_profile"]
        profiles: dict[Value, dict[str, tuple[Shape, Shape, Shape]]] = {reference: {} for reference in added}
        for call in calls:
            if call.method == "set_shape":
                told = {**dict(zip(("input", "min", "opt", "max"), call.args, strict=False)), **call.kwargs}
                shapes = (told["min"], told["opt"], told["max"])
                profiles[call.target][str(told["input"])] = cast("tuple[Shape, Shape, Shape]", shapes)
        return list(profiles.values())

    def save(self, path: Path) -> None:
        """One .npz: ``record`` is JSON in UTF-8, ``constant.N`` the bytes of the constants."""
        text = {
            "format": FORMAT,
            "module": self.module,
            "version": self.version,
            "events": [_event_json(event) for event in self.events],
            "build": [_event_json(event) for event in self.build],
            "constants": [[constant.dtype, constant.count] for constant in self.constants],
            "tensors": {index: asdict(fact) for index, fact in self.tensors.items()},
            "layers": self.layers,
            "engine_sha256": self.engine_sha256,
        }
        arrays = {f"constant.{index}": constant.data for index, constant in enumerate(self.constants)}
        encoded = np.frombuffer(json.dumps(text).encode(), np.uint8)
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, record=encoded, **arrays)

    @staticmethod
    def load(path: Path) -> Record:
        """Raises InternalError if the file is of another format."""
        with np.load(path, allow_pickle=False) as arrays:
            text = json.loads(arrays["record"].tobytes())
            if text["format"] != FORMAT:
                raise InternalError(f"{path}: a record of format {text['format']}, this program reads {FORMAT}")
            constants = [
                Constant(dtype, count, arrays[f"constant.{index}"])
                for index, (dtype, count) in enumerate(text["constants"])
            ]
        return Record(
            module=text["module"],
            version=text["version"],
            events=[_event(entry) for entry in text["events"]],
            build=[_event(entry) for entry in text["build"]],
            constants=constants,
            tensors={
                int(index): TensorFact(fact["name"], fact["dtype"], tuple(fact["shape"]))
                for index, fact in text["tensors"].items()
            },
            layers={int(index): name for index, name in text["layers"].items()},
            engine_sha256=text["engine_sha256"],
        )


_KINDS: dict[str, type[Ref] | type[Enum] | type[ConstantRef] | type[Opaque]] = {
    "ref": Ref,
    "enum": Enum,
    "constant": ConstantRef,
    "opaque": Opaque,
}
_TAGS = {kind: tag for tag, kind in _KINDS.items()}


def _value_json(value: Value) -> Any:
    if isinstance(value, tuple):
        return [_value_json(item) for item in value]
    if isinstance(value, Ref | Enum | ConstantRef | Opaque):
        return {_TAGS[type(value)]: list(asdict(value).values())}
    return value


def _value(entry: Any) -> Value:
    if isinstance(entry, list):
        return _values(entry)
    if isinstance(entry, dict):
        ((tag, fields),) = entry.items()
        return _KINDS[tag](*fields)
    return entry  # type: ignore[no-any-return]  # a JSON scalar


def _values(entries: Sequence[Any]) -> tuple[Value, ...]:
    return tuple(_value(entry) for entry in entries)


def _event_json(event: Event) -> list[Any]:
    target = [event.target.kind, event.target.index]
    if isinstance(event, Assignment):
        return [target, event.attribute, _value_json(event.value)]
    kwargs = {name: _value_json(value) for name, value in event.kwargs.items()}
    return [target, event.method, _value_json(event.args), kwargs, _value_json(event.result)]


def _event(entry: Sequence[Any]) -> Event:
    target, name, *rest = entry
    if len(rest) == 1:
        return Assignment(Ref(*target), name, _value(rest[0]))
    args, kwargs, result = rest
    return Call(
        Ref(*target), name, _values(args), {key: _value(value) for key, value in kwargs.items()}, _value(result)
    )
