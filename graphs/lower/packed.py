"""Weights of another layout than the checkpoint's, as rows of a lowering table ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir

from dsv3export.graphs.rewrite import KindRewriter
from dsv3export.graphs.spec import dims_of
from dsv3export.plugins import ALL_OPS
from dsv3export.plugins.dims import bind_dims, static_dims
from dsv3export.plugins.registry import Dims


@dataclass(frozen=True)
class Packed:
    """A weight input of what an op is lowered to, made from weight inputs of the op.

    Args:
        port: The formal input that it is given as.
        packing: A key of `dsv3export.graphs.packing.PACKINGS`.
        inputs: The op's formal inputs that it is made of.
        name: Its name below the node's.
        dims: Its shape: symbols of the op's dims, or products of a number and a symbol.
        params: Of the packing, beside the op's dims.
        dtype: Its type; None for that of what it is made of.
    """

    port: str
    packing: str
    inputs: tuple[str, ...]
    name: str
    dims: tuple[str, ...]
    params: Mapping[str, int] = field(default_factory=dict)
    dtype: ir.DataType | None = None

    def shape(self, dims: Dims) -> list[int]:
        """Its sizes for known dims."""
        return [prod(int(f) if f.isdecimal() else dims[f] for f in dim.split("*")) for dim in self.dims]


def node_dims(node: ir.Node) -> Dims:
    """The sizes of a dsv3 node's dims that are known before run time."""
    op = ALL_OPS[node.op_type]
    return static_dims(op, bind_dims(op, [dims_of(value) for value in node.inputs if value is not None]))


def packed_inputs(rewriter: KindRewriter, node: ir.Node, packed: Sequence[Packed], dims: Dims) -> dict[str, ir.Value]:
    """A dsv3 node's inputs by formal name, with the packed weights, which are declared in the layer kind."""
    ports = ALL_OPS[node.op_type].inputs_given(len(node.inputs))
    values = {port.name: value for port, value in zip(ports, node.inputs, strict=True) if value is not None}
    for each in packed:
        sources = [values[port] for port in each.inputs if port in values]
        if sources:
            dtype = each.dtype or sources[0].dtype or ir.DataType.UNDEFINED
            path, params = f"{node.name}.{each.name}", {**dims, **each.params}
            values[each.port] = rewriter.weight(path, dtype, each.shape(dims), each.packing, sources, params)
    return values
