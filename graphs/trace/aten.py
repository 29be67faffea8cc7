"""The table of torch ops that the reference model uses, and what each becomes in ONNX.

The table is closed on purpose: an op that is not here is refused by name, so that the graph's vocabulary grows by
decision and every backend's lowering can be complete.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.onnx.ops  # registers the ONNX ops with torch
from torch.fx import Node

from dsv3export.errors import InternalError
from dsv3export.graphs.trace.emitter import IR_TYPES, Dim, Emitter, module_path
from dsv3export.plugins import DOMAIN, OPS

Result = ir.Value | tuple[ir.Value, ...]
Row = Callable[[Emitter, Node], Result]

aten: Any = torch.ops.aten


def convert(emitter: Emitter, node: Node) -> None:
    """Emit the ONNX nodes of one FX call and record its value, with dtype and shape."""
    row = ROWS.get(node.target)
    if row is None:
        raise InternalError(f"the reference uses torch op {node.target}, for which the trace has no row")
    result = row(emitter, node)
    emitter.values[node] = result
    traced = node.meta["val"]
    if isinstance(result, ir.Value):
        if isinstance(traced, torch.Tensor):
            emitter.describe(result, traced)
    else:
        for value, tensor in zip(result, traced, strict=True):
            emitter.describe(value, tensor)


def _unary(op_type: str) -> Row:
    return lambda e, n: e.emit(n, op_type, [e.tensor(n.args[0])])


def _binary(op_type: str) -> Row:
    def row(e: Emitter, n: Node) -> ir.Value:
        right = n.args[1]
        other = e.tensor(right) if isinstance(right, Node) else e.number(n, _as_number(right))
        return e.emit(n, op_type, [e.tensor(n.args[0]), other])

    return row


def _as_number(value: Any) -> float:
    return float(value)


def _rms_norm(e: Emitter, n: Node) -> ir.Value:
    x, _, weight, epsilon = n.args
    return e.emit(n, "RMSNormalization", [e.tensor(x), e.tensor(weight)], {"axis": -1, "epsilon": epsilon})


def _embedding(e: Emitter, n: Node) -> ir.Value:
    return e.emit(n, "Gather", [e.tensor(n.args[0]), e.tensor(n.args[1])], {"axis": 0})


def _index_select(e: Emitter, n: Node) -> ir.Value:
    x, axis, index = n.args
    return e.emit(n, "Gather", [e.tensor(x), e.tensor(index)], {"axis": axis})


def _concat(e: Emitter, n: Node) -> ir.Value:
    tensors: Any = n.args[0]
    return e.emit(n, "Concat", [e.tensor(tensor) for tensor in tensors], {"axis": _axis(n, 1)})


def _axis(n: Node, position: int) -> int:
    axis: Any = n.args[position] if len(n.args) > position else 0
    return int(axis)


def _cast(e: Emitter, n: Node) -> ir.Value:
    dtype: Any = n.args[1]
    return e.emit(n, "Cast", [e.tensor(n.args[0])], {"to": IR_TYPES[dtype].value})


def _unsqueeze(e: Emitter, n: Node) -> ir.Value:
    return e.emit(n, "Unsqueeze", [e.tensor(n.args[0]), e.integers(n, [_axis(n, 1)])])


def _silu(e: Emitter, n: Node) -> ir.Value:
    return e.emit(n, "Swish", [e.tensor(n.args[0])])


def _split(e: Emitter, n: Node) -> tuple[ir.Value, ...]:
    sizes: Any = n.args[1]
    inputs = [e.tensor(n.args[0]), e.integers(n, sizes)]
    names = [f"{e.name(n, 'Split')}.{index}" for index in range(len(sizes))]
    return e.append(n, "Split", inputs, {"axis": _axis(n, 2)}, "", names)


def _getitem(e: Emitter, n: Node) -> ir.Value:
    source: Any = n.args[0]
    index: Any = n.args[1]
    values = e.values[source]
    if isinstance(values, ir.Value):
        raise InternalError(f"{n} indexes a single tensor")
    picked: ir.Value = values[index]
    return picked


def _size(e: Emitter, n: Node) -> ir.Value:
    x = e.tensor(n.args[0])
    axis = _axis(n, 1)
    size = e.emit(n, "Squeeze", [e.shape(n, x, axis, axis + 1)])
    size.dtype, size.shape = ir.DataType.INT64, ir.Shape(())
    return size


def _arange(e: Emitter, n: Node) -> ir.Value:
    return e.emit(n, "Range", [e.integer(n, 0), e.tensor(n.args[0]), e.integer(n, 1)])


def _zeros(e: Emitter, n: Node) -> ir.Value:
    shape: Any = n.args[0]
    return e.emit(n, "ConstantOfShape", [e.integers(n, shape)])


def _reshape(e: Emitter, n: Node) -> ir.Value:
    source: Any = n.args[0]
    target = reshape_target(e.dims(source.meta["val"]), e.dims(n.meta["val"]))
    return e.emit(n, "Reshape", [e.tensor(source), e.integers(n, target)])


def reshape_target(before: Sequence[Dim], after: Sequence[Dim]) -> list[int]:
    """ONNX Reshape's shape for a change of dims: 0 keeps a symbolic dim in place, -1 takes the one that is left."""
    target = [_reshape_dim(index, dim, before) for index, dim in enumerate(after)]
    if target.count(-1) > 1:
        raise InternalError(f"reshape from {list(before)} to {list(after)} leaves two sizes open")
    return target


def _reshape_dim(index: int, dim: Dim, before: Sequence[Dim]) -> int:
    if isinstance(dim, int):
        return dim
    return 0 if index < len(before) and before[index] == dim else -1


def _view_as(e: Emitter, n: Node) -> ir.Value:
    like = e.tensor(n.args[1])
    return e.emit(n, "Reshape", [e.tensor(n.args[0]), e.shape(n, like, 0, len(like.shape or ()))])


def _rotary(e: Emitter, n: Node) -> ir.Value:
    attributes = {"interleaved": int(bool(n.kwargs["interleaved"])), "num_heads": n.kwargs["num_heads"]}
    return e.emit(n, "RotaryEmbedding", [e.tensor(arg) for arg in n.args], attributes)


def _dsv3(op_name: str) -> Row:
    """A custom op becomes one node of the same schema: tensors first, then attributes by name."""
    op = OPS[op_name]

    def row(e: Emitter, n: Node) -> Result:
        arguments = [*n.args, *n.kwargs.values()]
        inputs = [e.tensor(arg) for arg in arguments[: len(op.inputs)]]
        attributes = {a.name: v for a, v in zip(op.attributes, arguments[len(op.inputs) :], strict=True)}
        if len(op.outputs) == 1:
            return e.emit(n, op.name, inputs, attributes, domain=DOMAIN)
        names = [f"{module_path(n)}.{port.name}" for port in op.outputs]
        return e.append(n, op.name, inputs, attributes, DOMAIN, names)

    return row


ROWS: dict[Any, Row] = {
    operator.getitem: _getitem,
    aten.add.Tensor: _binary("Add"),
    aten.arange.default: _arange,
    aten.cat.default: _concat,
    aten.cos.default: _unary("Cos"),
    aten.embedding.default: _embedding,
    aten.flatten.using_ints: _reshape,
    aten.index_select.default: _index_select,
    aten.mul.Tensor: _binary("Mul"),
    aten.rms_norm.default: _rms_norm,
    aten.silu.default: _silu,
    aten.sin.default: _unary("Sin"),
    aten.split_with_sizes.default: _split,
    aten.sym_size.int: _size,
    aten.to.dtype: _cast,
    aten.unflatten.int: _reshape,
    aten.unsqueeze.default: _unsqueeze,
    aten.view_as.default: _view_as,
    aten.zeros.default: _zeros,
    torch.ops.onnx.RotaryEmbedding.opset23: _rotary,
    **{getattr(torch.ops.dsv3, op.torch_name.removeprefix("dsv3::")).default: _dsv3(op.name) for op in OPS.values()},
}

# Checks that torch.export leaves in the graph; they compute nothing.
IGNORED = frozenset({aten._assert_tensor_metadata.default})
