"""One recorded layer, as the functions that compute it see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.record import Constant, ConstantRef, Enum, Value

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "FP8": torch.float8_e4m3fn,
    "INT4": torch.int8,  # one number an element while it is computed with; two in a byte at the engine's border
}
NARROW = frozenset({torch.float16, torch.bfloat16})


class ReplayError(InternalError):
    """A recorded network cannot be replayed, or computes something else than TensorRT says it does."""


@dataclass
class Layer:
    """What a recorded layer is: its kind, inputs and attributes.

    Attributes:
        method: The call that added it, e.g. ``add_softmax``.
        name: Its name, for messages.
        inputs: Numbers of its input tensors; None where an optional one is absent.
        outputs: Numbers of its output tensors, as far as anyone asked for them.
        attributes: Arguments and attributes set later, by the attribute's name.
        input_types: TensorRT's names of the inputs' types.
        constants: The record's constants.
    """

    method: str
    name: str
    inputs: list[int | None] = field(default_factory=list)
    outputs: dict[int, int] = field(default_factory=dict)
    attributes: dict[str, Value] = field(default_factory=dict)
    input_types: list[str] = field(default_factory=list)
    constants: Sequence[Constant] = ()

    def error(self, message: str) -> ReplayError:
        return ReplayError(f"{self.method} {self.name!r}: {message}")

    def flag(self, name: str, default: bool) -> bool:
        value = self.attributes.get(name, default)
        if not isinstance(value, bool | int):
            raise self.error(f"{name} is {value!r}, not a flag")
        return bool(value)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise self.error(f"{name} is {value!r}, not an integer")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise self.error(f"{name} is {value!r}, not a number")
        return value

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        value = self.attributes.get(name, default)
        if not isinstance(value, tuple) or not all(isinstance(item, int) for item in value):
            raise self.error(f"{name} is {value!r}, not a list of integers")
        return tuple(int(str(item)) for item in value)

    def choice(self, name: str, default: str | None = None) -> str:
        """The name of an enumeration's member."""
        value = self.attributes.get(name, default)
        if isinstance(value, Enum):
            return value.name
        if not isinstance(value, str):
            raise self.error(f"{name} is {value!r}, not a member of an enumeration")
        return value

    def dtype(self, name: str, default: str | None = None) -> torch.dtype:
        return DTYPES[self.choice(name, default)]

    def constant(self, name: str) -> Constant:
        value = self.attributes.get(name)
        if not isinstance(value, ConstantRef):
            raise self.error(f"{name} is {value!r}, not weights")
        return self.constants[value.index]

    def axis_of_mask(self, name: str, rank: int, default: int | None = None) -> int:
        """The single axis of a bit mask."""
        axes = self.axes_of_mask(name, rank, default)
        if len(axes) != 1:
            raise self.error(f"{name} has axes {axes}, expected one")
        return axes[0]

    def axes_of_mask(self, name: str, rank: int, default: int | None = None) -> list[int]:
        mask = self.integer(name, default)
        if not 0 < mask < 1 << rank:
            raise self.error(f"{name} is {mask:#b}, which has no axes or some that a tensor of rank {rank} lacks")
        return [axis for axis in range(rank) if mask >> axis & 1]


Inputs: TypeAlias = "Sequence[Tensor | None]"
Function: TypeAlias = "Callable[[Layer, Inputs], Sequence[Tensor]]"


@dataclass(frozen=True)
class Rule:
    """How a layer is replayed.

    Attributes:
        parameters: Names of the adding call's arguments, in order, as attributes; ``*``: a tensor or some.
        compute: Layer and its inputs -> outputs.
    """

    parameters: tuple[str, ...]
    compute: Function


def wide(x: Tensor) -> Tensor:
    """float32 of 16-bit floats: TensorRT's kernels accumulate and evaluate in float32."""
    return x.float() if x.dtype in NARROW else x


def present(layer: Layer, inputs: Inputs, index: int) -> Tensor:
    """An input that must be there."""
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise layer.error(f"input {index} is missing")
    return value


def optional(inputs: Inputs, index: int) -> Tensor | None:
    return inputs[index] if index < len(inputs) else None
