"""dsv3::Linear, LinearInt and LinearFp8Block as TensorRT layers, weight-only.

Two forms. In a prefill the weight is made in the type of activations, and multiplied. A decode step has so few tokens
that this would write and read the made weight for nothing: there each product is x * weight summed over K, which
TensorRT fuses with the making of the weight, so that a step reads the stored bytes and no others, and adds in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dsv3export.graphs.lower.packed import Packed
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.prepare import is_router
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows.values import flat, fp8_blocks, in_groups, int_groups, like_flat
from dsv3export.plugins.registry import DOMAIN, Attributes, Dims

Inputs = Sequence[ITensor]


def project(emitter: Emitter, x: ITensor, weight: ITensor) -> ITensor:
    """x [..., K] @ weight [N, K]^T in the type of activations, for a weight that is stored in any float type."""
    y = emitter.matmul(
        flat(emitter, emitter.cast(x, emitter.compute)), emitter.cast(weight, emitter.compute), transpose_b=True
    )
    return like_flat(emitter, y, x)


def project_exactly(emitter: Emitter, x: ITensor, weight: ITensor) -> ITensor:
    """The same, each product and sum in float32: [..., N]."""
    rows, width = (int(size) for size in weight.shape)
    wide = emitter.reshape(emitter.cast(x, emitter.float32), [-1, 1, width])
    products = emitter.mul(wide, emitter.reshape(emitter.cast(weight, emitter.float32), [1, rows, width]))
    return like_flat(emitter, emitter.reduce("SUM", products, [2], keep=False), x)


def _linear(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, weight = inputs
    return [(project_exactly if is_router(node) else project)(emitter, x, weight)]


def _linear_int(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, weight, scale, *offset = inputs
    bits, group = (int(node.attributes[name].value) for name in ("bits", "group"))
    seen = rounded_to_int8(emitter, x, group) if node.attributes["activations"].value == "int8" else x
    values = int_groups(emitter, weight, scale, offset[0] if offset else None, bits, int(x.shape[-1]))
    return [_product(emitter, seen, values)]


def _linear_fp8(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, weight, scale = inputs
    return [_product(emitter, x, fp8_blocks(emitter, weight, scale))]


def _product(emitter: Emitter, x: ITensor, weight: ITensor) -> ITensor:
    """The product, rounded once to the type of activations."""
    if emitter.few_tokens:
        return emitter.cast(project_exactly(emitter, x, weight), emitter.compute)
    return project(emitter, x, weight)


def rounded_to_int8(emitter: Emitter, x: ITensor, group: int) -> ITensor:
    """x [..., K] as integer products see it: rounded to 127 steps of each group's largest magnitude, float32."""
    wide = flat(emitter, emitter.cast(x, emitter.float32))
    width = int(wide.shape[1])
    if missing := -width % group:
        nothing = emitter.constant(np.zeros((1, missing), np.float32))
        wide = emitter.concat([wide, emitter.expand(nothing, [emitter.dim(wide, 0), missing])], 1)
    groups = in_groups(emitter, wide, (width + missing) // group)
    steps = emitter.constant(np.full((1, 1, 1), 127, np.float32))
    scale = emitter.div(emitter.reduce("MAX", emitter.unary("ABS", groups), [2]), steps)
    # A group of zeros has no scale, and stays.
    is_some = emitter.binary("GREATER", scale, emitter.constant(np.zeros((1, 1, 1), np.float32)))
    divisor = emitter.select(is_some, scale, emitter.constant(np.ones((1, 1, 1), np.float32)))
    rounded = emitter.mul(emitter.unary("ROUND", emitter.div(groups, divisor)), scale)
    filled = emitter.reshape(rounded, [-1, width + missing])
    seen = emitter.slice(filled, [0, 0], [emitter.dim(filled, 0), width]) if missing else filled
    return like_flat(emitter, seen, x)


def int_packed(dims: Dims, attributes: Attributes) -> tuple[Packed, ...]:
    """LinearInt's numbers as TensorRT has them, signed, and what is subtracted of each group."""
    bits = attributes["bits"]
    numbers = (
        Packed("signed", "signed_int8", ("qweight",), "signed", ("N", "P"), dtype=ir.DataType.INT8)
        if bits == 8
        else Packed("signed", "signed_int4", ("qweight",), "signed", ("N", "2*P"), dtype=ir.DataType.INT4)
    )
    if "Z" not in dims:
        return (numbers,)
    offset = Packed(
        "offset", "zero_offset", ("scale", "zero_point"), "offset", ("N", "G"), {"bits": bits}, ir.DataType.FLOAT
    )
    return numbers, offset


ROWS: Mapping[Key, Row] = {
    (DOMAIN, "Linear"): Row(_linear),
    (DOMAIN, "LinearInt"): Row(_linear_int, ("x", "signed", "scale", "offset"), int_packed),
    (DOMAIN, "LinearFp8Block"): Row(_linear_fp8),
}
