"""dsv3::MoEExperts and its FP8 and integer forms as TensorRT layers.

A decode step gathers the matrices that its tokens chose. A prefill multiplies all tokens with all experts, some experts
at a time, and weighs what an expert was not chosen for with 0: no list of a run-time length, and no sum whose order
depends on the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dsv3export.graphs.lower.packed import Packed, node_dims
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows.banks import Bank, FloatBank, Fp8Bank, IntBank
from dsv3export.graphs.lower.tensorrt.rows.linear import rounded_to_int8
from dsv3export.plugins.registry import DOMAIN, Attributes, Dims

Inputs = Sequence[ITensor]

# Of a matrix of the experts that a prefill multiplies with at once: what is made of them in 16 bits takes 256 MiB.
_ELEMENTS_AT_ONCE = 1 << 27


@dataclass(frozen=True)
class Experts:
    """What the tokens of a step go through.

    Attributes:
        x: [T, D].
        ids: int32 [T, k].
        weights: float32 [T, k].
        group: Neighbours that inputs are rounded to int8 in, or 0 where they are not.
    """

    x: ITensor
    ids: ITensor
    weights: ITensor
    gate: Bank
    up: Bank
    down: Bank
    dims: Dims
    group: int = 0

    def seen(self, emitter: Emitter, x: ITensor) -> ITensor:
        """Inputs of a product as it sees them."""
        return rounded_to_int8(emitter, x, self.group) if self.group else x


def _moe_experts(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    gate, up, down = (FloatBank(bank) for bank in inputs[3:])
    return [_through(emitter, node, inputs, (gate, up, down))]


def _moe_experts_fp8(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    gate, up, down = (Fp8Bank(bits, scale) for bits, scale in zip(inputs[3::2], inputs[4::2], strict=True))
    return [_through(emitter, node, inputs, (gate, up, down))]


def _moe_experts_int(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    banks = inputs[3:]
    bits, group = (int(node.attributes[name].value) for name in ("bits", "group"))
    offsets = banks[6:] or [None] * 3
    gate, up, down = (
        IntBank(numbers, scale, offset, bits)
        for numbers, scale, offset in zip(banks[:6:2], banks[1:6:2], offsets, strict=True)
    )
    rounding = group if node.attributes["activations"].value == "int8" else 0
    return [_through(emitter, node, inputs, (gate, up, down), rounding)]


def _through(
    emitter: Emitter, node: ir.Node, inputs: Inputs, banks: tuple[Bank, Bank, Bank], group: int = 0
) -> ITensor:
    x, ids, weights = inputs[:3]
    ids, weights = emitter.cast(ids, emitter.trt.DataType.INT32), emitter.cast(weights, emitter.float32)
    experts = Experts(x, ids, weights, *banks, node_dims(node), group)
    form = _of_chosen if emitter.few_tokens else _of_all
    return emitter.cast(form(emitter, experts), emitter.compute)


def _of_chosen(emitter: Emitter, e: Experts) -> ITensor:
    """Each token through the k experts that it chose, all in float32: [T, D]."""
    hidden_width, chosen = e.dims["I"], e.dims["k"]
    x = emitter.reshape(emitter.cast(e.seen(emitter, e.x), emitter.float32), [-1, 1, e.dims["D"]])
    hidden = _swiglu(emitter, _each(emitter, e.gate, x, e.ids), _each(emitter, e.up, x, e.ids))
    seen = emitter.reshape(e.seen(emitter, emitter.reshape(hidden, [-1, hidden_width])), [-1, chosen, hidden_width])
    each = emitter.mul(_each(emitter, e.down, seen, e.ids), emitter.unsqueeze(e.weights, [2]))
    return emitter.reduce("SUM", each, [1], keep=False)


def _each(emitter: Emitter, bank: Bank, x: ITensor, ids: ITensor) -> ITensor:
    """Rows x, [T, k or 1, K], times the transposed matrices of experts ids [T, k]: float32 [T, k, N]."""
    total = None
    for part, columns in zip(bank.parts(emitter, ids), bank.split(emitter, x), strict=True):
        products = emitter.mul(emitter.unsqueeze(columns, [2]), part)
        sums = emitter.reduce("SUM", products, [3], keep=False)
        total = sums if total is None else emitter.add(total, sums)
    return total


def _of_all(emitter: Emitter, e: Experts) -> ITensor:
    """All tokens through all experts, weighed and summed in float32: [T, D]."""
    x = emitter.unsqueeze(emitter.cast(e.seen(emitter, e.x), emitter.compute), [0])
    total = None
    for begin, count in _chunks(e.dims):
        places = emitter.constant(np.arange(begin, begin + count, dtype=np.int32))
        hidden = _swiglu(emitter, _batched(emitter, e.gate, x, places), _batched(emitter, e.up, x, places))
        out = _batched(emitter, e.down, emitter.cast(e.seen(emitter, hidden), emitter.compute), places)
        weighed = emitter.mul(out, _weights_of(emitter, e, begin, count))
        partial = emitter.reduce("SUM", weighed, [0], keep=False)
        total = partial if total is None else emitter.add(total, partial)
    return total


def _chunks(dims: Dims) -> list[tuple[int, int]]:
    """First expert and number of experts of each chunk: no more chunks than needed, of much the same size."""
    experts = dims["E"]
    most = max(1, _ELEMENTS_AT_ONCE // (dims["I"] * dims["D"]))
    chunks = -(-experts // most)
    at_once = -(-experts // chunks)
    return [(begin, min(at_once, experts - begin)) for begin in range(0, experts, at_once)]


def _batched(emitter: Emitter, bank: Bank, x: ITensor, places: ITensor) -> ITensor:
    """x [1 or c, T, K] times the transposed matrices of c experts: float32 [c, T, N]."""
    total = None
    for part, columns in zip(bank.parts(emitter, places), bank.split(emitter, x), strict=True):
        product = emitter.matmul(columns, emitter.cast(part, emitter.compute), transpose_b=True)
        product = emitter.cast(product, emitter.float32)
        total = product if total is None else emitter.add(total, product)
    return total


def _weights_of(emitter: Emitter, e: Experts, begin: int, count: int) -> ITensor:
    """What each token weighs each of some experts with, 0 where it chose others: float32 [count, T, 1]."""
    experts = emitter.constant(np.arange(begin, begin + count, dtype=np.int32).reshape(count, 1, 1))
    is_chosen = emitter.binary("EQUAL", emitter.unsqueeze(e.ids, [0]), experts)
    nothing = emitter.constant(np.zeros((1, 1, 1), np.float32))
    weights = emitter.select(is_chosen, emitter.unsqueeze(e.weights, [0]), nothing)
    return emitter.reduce("SUM", weights, [2])


def _swiglu(emitter: Emitter, gate: ITensor, up: ITensor) -> ITensor:
    """silu(gate) * up."""
    return emitter.mul(emitter.mul(gate, emitter.activation("SIGMOID", gate)), up)


def _int_packed(dims: Dims, attributes: Attributes) -> tuple[Packed, ...]:
    """Each bank's bytes with the upper number signed, and what is subtracted of each group."""
    banks = (("gate", "I", "P", "G"), ("up", "I", "P", "G"), ("down", "D", "Q", "H"))
    packed = [
        Packed(
            f"{bank}_signed", "signed_int8", (bank,), f"{bank}_proj.signed", ("E", rows, width), dtype=ir.DataType.INT8
        )
        for bank, rows, width, _ in banks
    ]
    if "Z" in dims:
        params = {"bits": attributes["bits"]}
        packed += [
            Packed(
                f"{bank}_offset",
                "zero_offset",
                (f"{bank}_scale", f"{bank}_zero"),
                f"{bank}_proj.offset",
                ("E", rows, groups),
                params,
                ir.DataType.FLOAT,
            )
            for bank, rows, _, groups in banks
        ]
    return tuple(packed)


_INT_INPUTS = (
    *("x", "ids", "weights", "gate_signed", "gate_scale", "up_signed", "up_scale", "down_signed", "down_scale"),
    *("gate_offset", "up_offset", "down_offset"),
)

ROWS: Mapping[Key, Row] = {
    (DOMAIN, "MoEExperts"): Row(_moe_experts),
    (DOMAIN, "MoEExpertsFp8Block"): Row(_moe_experts_fp8, as_bits=(3, 5, 7)),
    (DOMAIN, "MoEExpertsInt"): Row(_moe_experts_int, _INT_INPUTS, _int_packed),
}
