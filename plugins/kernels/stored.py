"""How the kernels' products read stored weights: which format, in which steps along K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv3export.errors import InternalError
from dsv3export.plugins.kernels.plugin import ACTIVATIONS, Attributes, Constant, Port, TensorType, Tile
from dsv3export.plugins.kernels.sizes import ceil_div, known

NATIVE_E4M3 = 89
"""The first compute capability whose instructions know float8 e4m3."""
BLOCK = 128
# The matrix units' smallest inner dimension.
_LEAST = 16
_LONG_SIDE = 64


@dataclass(frozen=True)
class Stored:
    """A matrix [N, K] in a format that `products.weight_product` reads.

    Args:
        format: "plain", "fp8", "int8" or "int4".
        group: Neighbours along K that share a scale.
        rounded: Whether activations are rounded to int8 in the same groups.
    """

    format: str
    group: int = BLOCK
    rounded: bool = False

    @classmethod
    def of_integers(cls, attributes: Attributes) -> Stored:
        """By the attributes ``bits``, ``group`` and ``activations`` of an op."""
        return cls(f"int{attributes['bits']}", int(attributes["group"]), attributes["activations"] == "int8")

    def constants(self, tile: Tile, rows: int, columns: int, inner: int) -> tuple[tuple[str, Constant], ...]:
        """The constants of `weight_product` for `rows` at a time and a matrix [columns, inner]."""
        step = self.group if self.rounded else min(tile.inner, self.group)
        if step < _LEAST or step & (step - 1) or self.group % step:
            raise InternalError(f"a kernel needs groups of a power of two, {_LEAST} or more; got {self.group}")
        return (
            ("N", columns),
            ("K", inner),
            ("FORMAT", self.format),
            ("GROUP", self.group),
            ("ROUND", self.rounded),
            ("INNER", step),
            ("ROWS", rows),
            ("COLUMNS", tile.columns),
            # Numbers that are converted first pass through registers, in the order that the unswapped product reads.
            ("SWAPPED", self.format == "plain" and swapped(rows)),
        )

    def steps(self, columns: int, inner: int) -> tuple[int, int, int]:
        """How far apart two matrices of a bank are: in numbers (bytes, if packed), in scales, in zero points."""
        groups = known(ceil_div(inner, self.group))
        if self.format == "plain":
            return columns * inner, 0, 0
        if self.format == "fp8":
            return columns * inner, known(ceil_div(columns, BLOCK)) * groups, 0
        if self.format == "int8":
            return columns * groups * self.group, columns * groups, columns * groups
        return columns * groups * self.group // 2, columns * groups, columns * known(ceil_div(groups, 2))

    def raw(self, weights: Sequence[str], target: int) -> tuple[str, ...]:
        """Those of `weights` whose bytes the kernel decodes itself: float8 where the device cannot convert it."""
        return tuple(weights) if self.format == "fp8" and target < NATIVE_E4M3 else ()


def swapped(rows: int) -> bool:
    """Whether a product of so few rows puts the weights on the side of the matrix unit that has 64 rows on Hopper."""
    return rows < _LONG_SIDE


def weight_ports(name: str, format_: str, zero: bool) -> tuple[Port, ...]:
    """The inputs that a stored weight is: the numbers, and its scales and zero points if it has any."""
    if format_ == "plain":
        return (Port(name, ACTIVATIONS),)
    numbers = Port(name, ("F8_E4M3",) if format_ == "fp8" else ("U8", "I8"))
    scale, zeros = Port(f"{name}_scale", ("F32",)), Port(f"{name}_zero", ("U8", "I8"))
    return (numbers, scale, zeros) if zero else (numbers, scale)


def absent(names: Sequence[str], inputs: Sequence[str]) -> tuple[tuple[str, Constant], ...]:
    """None for those pointers that a kernel has and this use of it has not."""
    return tuple((f"{name}_ptr", None) for name in names if name not in inputs)


def as_bytes(tensors: dict[str, TensorType], packed: Sequence[str]) -> dict[str, TensorType]:
    """The same with the packed ones as unsigned bytes, whatever TensorRT calls them."""
    return {name: TensorType("U8", tensor.shape) if name in packed else tensor for name, tensor in tensors.items()}
