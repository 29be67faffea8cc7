"""What a plugin is made of, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from dsv3export.plugins.kernels.sizes import Size, known, product

Attribute: TypeAlias = "int | float | str"
Attributes: TypeAlias = "Mapping[str, Attribute]"
Constant: TypeAlias = "int | float | str | None"

POINTERS = {
    "F32": "*fp32",
    "F16": "*fp16",
    "BF16": "*bf16",
    "F8_E4M3": "*fp8e4nv",
    "I64": "*i64",
    "I32": "*i32",
    "I8": "*i8",
    "U8": "*u8",
}
"""safetensors dtype name -> Triton's type of a pointer to it."""

ACTIVATIONS = ("BF16", "F16", "F32")
"""The types that activations may have."""


@dataclass(frozen=True)
class TensorType:
    """The type of a tensor.

    Args:
        dtype: Its safetensors dtype name, e.g. ``"BF16"``.
        shape: Its sizes.
    """

    dtype: str
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Build:
    """A kernel with all that is fixed before it is compiled.

    Args:
        kernel: ``module:function`` of the Triton function.
        arguments: Name and Triton type (``"*bf16"``, ``"i32"``) of what is passed at a launch, in the function's order:
            inputs, integers, outputs.
        constants: The function's other arguments, by name.
        warps: Warps per program, 32 threads each.
        stages: Depth of the software pipeline.
    """

    kernel: str
    arguments: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    warps: int = 4
    stages: int = 2

    @property
    def name(self) -> str:
        return self.kernel.partition(":")[2]


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: the programs along the three axes of the grid, and the integers between the pointers."""

    build: Build
    grid: tuple[Size, Size, Size]
    integers: tuple[Size, ...] = ()


@dataclass(frozen=True)
class Tile:
    """One way of cutting a plugin's work, which TensorRT times against the others.

    Args:
        rows, columns: Of the part of the output that a program computes, where the kernel lets them be chosen.
        inner: How much of the inner dimension of a product a step takes at most.
        warps, stages: See `Build`.
    """

    rows: int
    columns: int = 1
    inner: int = 128
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Port:
    """An input of a plugin, and the dtypes it may have."""

    name: str
    dtypes: tuple[str, ...]


class Launcher(Protocol):
    """How a plugin runs on tensors of given types, cut by `tile`, on a device of compute capability `target`."""

    def __call__(
        self,
        inputs: Sequence[TensorType],
        outputs: Sequence[TensorType],
        attributes: Attributes,
        tile: Tile,
        target: int,
        /,
    ) -> Launch: ...


class Preference(Protocol):
    """The place of the tile that suits these inputs on a device of compute capability `target`."""

    def __call__(self, inputs: Sequence[TensorType], attributes: Attributes, target: int, /) -> int: ...


def _first(inputs: Sequence[TensorType], attributes: Attributes, target: int, /) -> int:
    return 0


def by_rows(most: Mapping[int, int], rest: int) -> Preference:
    """Prefers by the rows of the first input: `most` has limit -> place of a tile, ascending; `rest` is for more."""

    def preferred(inputs: Sequence[TensorType], attributes: Attributes, target: int, /) -> int:
        rows = known(product(inputs[0].shape[:-1]))
        return next((place for limit, place in most.items() if rows <= limit), rest)

    return preferred


def roomy(target: int) -> bool:
    """Whether a block may have 227 KB of shared memory: the data centre's devices from Hopper on."""
    return 90 <= target < 110


@dataclass(frozen=True)
class Plugin:
    """A plugin of TensorRT: one kernel and the rules of its tensors.

    Args:
        name: Its name in the namespace ``dsv3``.
        doc: What it computes, with shapes.
        inputs: In the order of the kernel's pointers.
        results: The names of the outputs.
        outputs: Gives the outputs' types from the inputs' and the attributes.
        launch: Gives the kernel and its grid.
        attributes: Name -> type.
        tiles: The tactics; the first is the default.
        aliases: Output -> input for an output that is an input, updated in place.
        least: The lowest compute capability that has the instructions it needs, e.g. 89.
        prefer: Which tile suits given inputs on a device of a compute capability, where nothing was measured.
    """

    name: str
    doc: str
    inputs: tuple[Port, ...]
    results: tuple[str, ...]
    outputs: Callable[[Sequence[TensorType], Attributes], tuple[TensorType, ...]]
    launch: Launcher
    attributes: tuple[tuple[str, type[int] | type[float] | type[str]], ...] = ()
    tiles: tuple[Tile, ...] = (Tile(1),)
    aliases: tuple[tuple[int, int], ...] = ()
    least: int = 80
    prefer: Preference = _first


T = TypeVar("T")


class Call(Protocol[T]):
    """Applies a plugin to tensors of some kind: a network's, torch's."""

    def __call__(self, plugin: Plugin, inputs: Sequence[T], **attributes: Attribute) -> tuple[T, ...]: ...


def arguments(
    inputs: Mapping[str, TensorType],
    integers: Sequence[str],
    outputs: Mapping[str, TensorType],
    raw: Sequence[str] = (),
) -> tuple[tuple[str, str], ...]:
    """The arguments of a `Build`; the bytes of the tensors named in `raw` are decoded by the kernel itself."""
    pointers = {**inputs, **outputs}
    types = {name: "*u8" if name in raw else POINTERS[tensor.dtype] for name, tensor in pointers.items()}
    return (
        *((f"{name}_ptr", types[name]) for name in inputs),
        *((name, "i32") for name in integers),
        *((f"{name}_ptr", types[name]) for name in outputs),
    )


def matrix(tensor: TensorType) -> tuple[Size, int]:
    """A tensor [..., K] as a matrix: how many rows it has, and K."""
    return product(tensor.shape[:-1]), known(tensor.shape[-1])


def same_type(tensor: TensorType, *last: Size) -> TensorType:
    """The type of a tensor [..., K] with other last sizes in place of K."""
    return TensorType(tensor.dtype, (*tensor.shape[:-1], *last))
