"""What a row of the lowering table is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.packed import Packed
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.plugins.registry import Attributes, Dims

if TYPE_CHECKING:
    from dsv3export.graphs.lower.tensorrt.emit import Emitter

# Domain and op type.
Key = tuple[str, str]
# An input may be None.
Emit = Callable[["Emitter", ir.Node, Sequence[ITensor]], Sequence[ITensor]]


@dataclass(frozen=True)
class Row:
    """How an op becomes layers.

    Attributes:
        emit: Adds them. It is given the node and its inputs, and returns one tensor per output. An input is None where
            the node leaves it out, or where it is one of `numbers` and constant.
        inputs: The formal inputs that it takes, each an input of the op or the port of a packed weight; None for the
            op's own. They may depend on the op's dims and attributes.
        packed: The packed weights; these too.
        numbers: Positions of inputs that are read as numbers where they are constants: see `constant_of`.
        as_bits: Positions of weights of 8 bits that the network takes as int8, whatever the bits mean.
    """

    emit: Emit
    inputs: tuple[str, ...] | Callable[[Dims, Attributes], tuple[str, ...]] | None = None
    packed: tuple[Packed, ...] | Callable[[Dims, Attributes], tuple[Packed, ...]] = ()
    numbers: tuple[int, ...] = ()
    as_bits: tuple[int, ...] = ()

    def inputs_for(self, dims: Dims, attributes: Attributes) -> tuple[str, ...] | None:
        """The formal inputs for known dims."""
        return self.inputs(dims, attributes) if callable(self.inputs) else self.inputs

    def packed_for(self, dims: Dims, attributes: Attributes) -> tuple[Packed, ...]:
        """The packed weights for known dims."""
        return self.packed(dims, attributes) if callable(self.packed) else self.packed


def find_row(rows: Mapping[Key, Row], node: ir.Node) -> Row:
    """The row of a node's op; a graph with another op should not have come so far."""
    row = rows.get((node.domain, node.op_type))
    if row is None:
        raise InternalError(f"TensorRT has no row for {node.domain or 'onnx'}::{node.op_type}, which {node.name} is")
    return row


def constant_of(value: ir.Value | None) -> int | float | list[int] | None:
    """What a Constant node says; None for a value that is computed."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Constant":
        return None
    (attribute,) = node.attributes.values()
    number: int | float | Sequence[int] = attribute.value
    return number if isinstance(number, (int, float)) else list(number)
