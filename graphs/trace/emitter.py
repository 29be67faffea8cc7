"""Builds the nodes of one ONNX function while an exported program is walked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch.fx import Node

Dim = int | str

IR_TYPES = {torch.float32: ir.DataType.FLOAT, torch.int64: ir.DataType.INT64, torch.bool: ir.DataType.BOOL}


class Emitter:
    """Collects ONNX nodes; knows the ONNX value of every FX node seen so far.

    Args:
        symbols: Text of a torch size symbol (``"s13"``) -> the dimension's name (``"B"``).
        single_op_modules: Module paths of which one op stems: its output is named by the path itself.
    """

    def __init__(self, symbols: Mapping[str, str], single_op_modules: frozenset[str]) -> None:
        self.nodes: list[ir.Node] = []
        self.values: dict[Node, ir.Value | tuple[ir.Value, ...]] = {}
        self._symbols = symbols
        self._single_op_modules = single_op_modules
        self._names: set[str] = set()

    def dims(self, value: torch.Tensor) -> tuple[Dim, ...]:
        """A traced tensor's shape in the graph's dimension names; a product such as ``B*S`` stays one symbol."""
        sizes: Sequence[int | torch.SymInt] = value.shape
        return tuple(size if isinstance(size, int) else self._dim_name(size) for size in sizes)

    def _dim_name(self, size: torch.SymInt) -> str:
        factors = str(size.node.expr).split("*")
        return "*".join(sorted(self._symbols[factor] for factor in factors))

    def describe(self, value: ir.Value, like: torch.Tensor) -> ir.Value:
        """Give `value` the dtype and shape of a traced tensor."""
        value.dtype = IR_TYPES[like.dtype]
        value.shape = ir.Shape(self.dims(like))
        return value

    def input(self, node: Node, name: str) -> ir.Value:
        """Declare a function input."""
        value = self.describe(ir.Value(name=self._unique(name)), node.meta["val"])
        self.values[node] = value
        return value

    def tensor(self, node: Any) -> ir.Value:
        """The ONNX value of an FX tensor node."""
        value = self.values[node]
        if not isinstance(value, ir.Value):
            raise TypeError(f"{node} is a tuple of tensors")
        return value

    def emit(
        self,
        node: Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        suffix: str = "",
    ) -> ir.Value:
        """Append a node with one output, named after the module that `node` stems from."""
        base = self.name(node, op_type) + (f".{suffix}" if suffix else "")
        return self.append(node, op_type, inputs, attributes, domain, [base])[0]

    def append(
        self,
        node: Node,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any] | None,
        domain: str,
        outputs: Sequence[str],
    ) -> tuple[ir.Value, ...]:
        """Append a node with named outputs; its module path goes along as metadata."""
        values = [ir.Value(name=self._unique(name)) for name in outputs]
        created = ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=values[0].name)
        created.metadata_props["dsv3.module"] = module_path(node)
        self.nodes.append(created)
        return tuple(values)

    def integers(self, node: Node, numbers: Sequence[int]) -> ir.Value:
        """A 1-D int64 constant."""
        return self._constant(node, {"value_ints": list(numbers)}, ir.DataType.INT64, (len(numbers),))

    def integer(self, node: Node, number: int) -> ir.Value:
        """An int64 scalar constant."""
        return self._constant(node, {"value_int": number}, ir.DataType.INT64, ())

    def number(self, node: Node, number: float) -> ir.Value:
        """A float32 scalar constant."""
        return self._constant(node, {"value_float": float(number)}, ir.DataType.FLOAT, ())

    def _constant(
        self, node: Node, attributes: Mapping[str, Any], dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.Value:
        value = self.append(node, "Constant", [], attributes, "", ["constant"])[0]
        value.dtype, value.shape = dtype, ir.Shape(shape)
        return value

    def shape(self, node: Node, x: ir.Value, start: int, end: int) -> ir.Value:
        """The sizes of axes start..end-1 of `x`: [end - start] int64."""
        value = self.emit(node, "Shape", [x], {"start": start, "end": end}, suffix="shape")
        value.dtype, value.shape = ir.DataType.INT64, ir.Shape((end - start,))
        return value

    def name(self, node: Node, op_type: str) -> str:
        """Provenance name: the module path where the module is one op, else path and op, e.g. ``self_attn.split``."""
        path = module_path(node)
        if path in self._single_op_modules:
            return path
        op = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", op_type).lower()
        return f"{path}.{op}" if path else op

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate


def module_path(node: Node) -> str:
    """The dotted path of the module whose forward made this FX node; empty for the traced module itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    innermost = str(paths[-1]) if paths else ""
    return "" if innermost.startswith("_empty") else innermost
