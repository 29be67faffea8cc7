"""What a dsv3 op is made of, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DOMAIN = "dsv3"
DOMAIN_VERSION = 1

Dims = Mapping[str, int]
Attributes = Mapping[str, Any]
FunctionText = Callable[[Dims, Attributes], str]
AttributeType = Literal["int", "float", "string"]

# The types of a weight that is plain numbers, whatever holds them: the op computes in float32.
FLOATS = ("float", "bfloat16", "float16")


@dataclass(frozen=True)
class Port:
    """One input or output of an op.

    Args:
        name: The formal name, e.g. ``"kv_c"``.
        dtypes: The ONNX tensor types it may have, e.g. ``("float", "bfloat16")``.
        dims: Its dimensions by symbol, e.g. ``("B", "S", "Dc")``; the same symbol is the same size throughout an op.
        optional: A node may leave it out; optional inputs come last, and are given all or none.
    """

    name: str
    dtypes: tuple[str, ...]
    dims: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Attribute:
    """One attribute of an op; every attribute is mandatory, so that a graph says all there is to know."""

    name: str
    type: AttributeType
    doc: str


@dataclass(frozen=True)
class Op:
    """A dsv3 op.

    Args:
        name: The ONNX op type, e.g. ``"MoERoute"``.
        torch_name: The torch custom op, e.g. ``"dsv3::moe_route"``.
        doc: What it computes and where the formula is from.
        inputs, outputs, attributes: The schema; torch arguments come in the same order, tensors first.
        kernel: Computes the op on torch tensors; may reuse a buffer that the op declares as aliased.
        function: Gives the op in standard ONNX ops, as ONNX function text, for known dimensions and attributes;
            any ONNX Runtime runs it.
        derived_dims: Dimensions that follow from bound ones, e.g. Dv from ``H*(Dn+Dv)``.
        aliases: Output name -> input name for outputs that update an input in place.
        opset: The version of the ONNX standard that `function` needs, where it is above the graph's own.
    """

    name: str
    torch_name: str
    doc: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: tuple[Attribute, ...]
    kernel: Callable[..., Any]
    function: FunctionText
    derived_dims: tuple[tuple[str, Callable[[Dims], int]], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    opset: int = 0

    def inputs_given(self, count: int) -> tuple[Port, ...]:
        """The inputs of a node with this many: all, or all but the optional ones."""
        mandatory = tuple(port for port in self.inputs if not port.optional)
        return mandatory if count == len(mandatory) else self.inputs


def by_name(ops: Sequence[Op]) -> dict[str, Op]:
    """Index ops by ONNX op type; refuses two ops of one name, in ONNX or in torch."""
    table: dict[str, Op] = {}
    torch_names: set[str] = set()
    for op in ops:
        if op.name in table or op.torch_name in torch_names:
            raise ValueError(f"op {op.name} ({op.torch_name}) is registered twice")
        table[op.name] = op
        torch_names.add(op.torch_name)
    return table
