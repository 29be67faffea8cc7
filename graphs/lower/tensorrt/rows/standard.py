"""The standard ONNX ops that the layer kinds use, as layers.

What rounds is computed in float32 and rounded once, to the type of activations: norms, swish and rotary embedding are
where half precision would be seen. TensorRT fuses such chains of casts and arithmetic into one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.dtypes import stored_type, trt_type
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.row import Key, Row, constant_of

Inputs = Sequence[ITensor]


def _add(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    return [emitter.add(*emitter.common(*inputs))]


def _mul(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    return [emitter.mul(*emitter.common(*inputs))]


def _cast(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    """To float32 means: to numbers that are computed with."""
    to = ir.DataType(_int(node, "to"))
    from_type = node.inputs[0].dtype if node.inputs[0] is not None else None
    is_activation = to == ir.DataType.FLOAT and from_type in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
    return [emitter.cast(inputs[0], emitter.compute if is_activation else trt_type(emitter.trt, stored_type(to)))]


def _concat(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    return [emitter.concat([x for x in inputs if x is not None], _int(node, "axis"))]


def _unary(operation: str) -> Callable[[Emitter, ir.Node, Inputs], Sequence[ITensor]]:
    def emit(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
        return [emitter.unary(operation, inputs[0])]

    return emit


def _gather(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, places = inputs
    picked = emitter.gather(x, places, _int(node, "axis"))
    # Rows of a float32 table are activations from here on; of a narrower one, the Cast behind it says so.
    return [emitter.cast(picked, emitter.compute) if picked.dtype == emitter.float32 else picked]


def _rms_norm(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis (Zhang and Sennrich 2019)."""
    x, weight = inputs
    wide = emitter.cast(x, emitter.float32)
    mean = emitter.reduce("AVG", emitter.mul(wide, wide), [len(wide.shape) - 1])
    epsilon = emitter.constant(np.float32(node.attributes["epsilon"].value).reshape(1))
    norm = emitter.unary("SQRT", emitter.add(mean, epsilon))
    scaled = emitter.mul(emitter.div(wide, norm), emitter.cast(weight, emitter.float32))
    return [emitter.cast(scaled, emitter.compute)]


def _rotary(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    """Rotates the pairs (x[2i], x[2i+1]) of each head by the angles of i: [B, S, H*Dr] -> the same shape."""
    if not _int(node, "interleaved"):
        raise InternalError(f"{node.name}: TensorRT's row rotates interleaved pairs only")
    x, cos, sin = inputs
    heads, width = _int(node, "num_heads"), int(x.shape[2])
    batch, tokens = emitter.dim(x, 0), emitter.dim(x, 1)
    pairs = [batch, tokens, heads, width // heads // 2, 2]
    wide = emitter.reshape(emitter.cast(x, emitter.float32), pairs)
    half = [*pairs[:-1], 1]
    even, odd = (emitter.slice(wide, [0, 0, 0, 0, part], half) for part in (0, 1))
    cosine, sine = (emitter.unsqueeze(emitter.cast(angle, emitter.float32), [2, 4]) for angle in (cos, sin))
    first = emitter.sub(emitter.mul(even, cosine), emitter.mul(odd, sine))
    second = emitter.add(emitter.mul(even, sine), emitter.mul(odd, cosine))
    rotated = emitter.reshape(emitter.concat([first, second], 4), [batch, tokens, width])
    return [emitter.cast(rotated, emitter.compute)]


def _swish(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    (x,) = inputs
    wide = emitter.cast(x, emitter.float32)
    return [emitter.cast(emitter.mul(wide, emitter.activation("SIGMOID", wide)), x.dtype)]


def _range(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    start, limit, step = (constant_of(value) for value in node.inputs)
    if (start, step) != (0, 1):
        raise InternalError(f"{node.name}: TensorRT's row counts from 0 by 1, not from {start} by {step}")
    return [emitter.arange(limit if isinstance(limit, int) else emitter.unsqueeze(inputs[1], [0]))]


def _reshape(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    """Of sizes that are constants, 0 means: as in the input."""
    x, sizes = inputs
    if sizes is not None:
        return [emitter.reshape(x, sizes)]
    wanted = _numbers(node, 1)
    return [emitter.reshape(x, [emitter.dim(x, axis) if size == 0 else size for axis, size in enumerate(wanted)])]


def _shape(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    first, behind = _int(node, "start"), _int(node, "end")
    return [emitter.sizes([emitter.dim(inputs[0], axis) for axis in range(first, behind)])]


def _split(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, axis = inputs[0], _int(node, "axis")
    rank = len(x.shape)
    axis %= rank
    sizes = [emitter.dim(x, each) for each in range(rank)]
    parts, begin = [], 0
    for width in _numbers(node, 1):
        start = [begin if each == axis else 0 for each in range(rank)]
        parts.append(emitter.slice(x, start, [width if each == axis else sizes[each] for each in range(rank)]))
        begin += width
    return parts


def _squeeze(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    """Without axes: every axis of size 1, all of which the graph knows."""
    x = inputs[0]
    return [emitter.squeeze(x, [axis for axis, size in enumerate(x.shape) if size == 1])]


def _unsqueeze(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    return [emitter.unsqueeze(inputs[0], _numbers(node, 1))]


def _zeros(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    """ConstantOfShape; what is made so is added to activations."""
    return [emitter.constant(np.zeros(_numbers(node, 0), np.float32), emitter.compute)]


def _int(node: ir.Node, name: str) -> int:
    return int(node.attributes[name].value)


def _numbers(node: ir.Node, port: int) -> list[int]:
    """An input that must be a constant list."""
    numbers = constant_of(node.inputs[port])
    if not isinstance(numbers, list):
        raise InternalError(f"{node.name}: TensorRT's row wants constant sizes")
    return numbers


ROWS: Mapping[Key, Row] = {
    ("", "Add"): Row(_add),
    ("", "Cast"): Row(_cast),
    ("", "Concat"): Row(_concat),
    ("", "ConstantOfShape"): Row(_zeros, numbers=(0,)),
    ("", "Cos"): Row(_unary("COS")),
    ("", "Gather"): Row(_gather),
    ("", "Mul"): Row(_mul),
    ("", "RMSNormalization"): Row(_rms_norm),
    ("", "Range"): Row(_range, numbers=(0, 1, 2)),
    ("", "Reshape"): Row(_reshape, numbers=(1,)),
    ("", "RotaryEmbedding"): Row(_rotary),
    ("", "Shape"): Row(_shape),
    ("", "Sin"): Row(_unary("SIN")),
    ("", "Split"): Row(_split, numbers=(1,)),
    ("", "Squeeze"): Row(_squeeze),
    ("", "Swish"): Row(_swish),
    ("", "Unsqueeze"): Row(_unsqueeze, numbers=(1,)),
}
