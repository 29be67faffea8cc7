"""Which parts of an op's weights a rank has, when the op is cut along one of its axes.

Weights are quantised first and cut afterwards, so that a rank's numbers and scales are those of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.rewrite import KindRewriter
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.values import is_weight
from dsv3export.graphs.weight_expr import SLICE, Param
from dsv3export.plugins import ALL_OPS
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK

# What an op is cut along: a projection's outputs or inputs, attention heads, the routed experts or their width.
Axis = Literal["rows", "columns", "heads", "experts", "width"]
# How a weight stores what lies along the axis: numbers; numbers in bytes; a scale for each group; a zero point for each
# group, in bytes that two of them may share; a scale for each block of 128.
_Storage = Literal["numbers", "bytes", "groups", "zero_points", "blocks"]


@dataclass(frozen=True)
class Share:
    """Part `index` of `ways` equal ones."""

    index: int
    ways: int

    def of(self, count: int) -> tuple[int, int]:
        """The first of `count` that belong to it, and the one behind the last."""
        if count % self.ways:
            raise InternalError(f"{count} is to be cut in {self.ways}")
        size = count // self.ways
        return self.index * size, (self.index + 1) * size


_Cut = tuple[str, int, _Storage]
_INT_BANK: tuple[tuple[str, _Storage], ...] = (("", "bytes"), ("_scale", "groups"), ("_zero", "zero_points"))
_BANKS = ("gate", "up", "down")


def _bank_cuts(parts: tuple[tuple[str, _Storage], ...], along_rows: _Storage) -> dict[Axis, tuple[_Cut, ...]]:
    """Of banks whose numbers are followed by `parts`; `along_rows` is how the first of those store an expert's rows."""
    experts: list[_Cut] = [(f"{bank}{part}", 0, "numbers") for bank in _BANKS for part, _ in parts]
    width: list[_Cut] = []
    for part, along_columns in parts:
        rows: _Storage = along_rows if part else "numbers"
        width += [(f"gate{part}", 1, rows), (f"up{part}", 1, rows), (f"down{part}", 2, along_columns)]
    return {"experts": tuple(experts), "width": tuple(width)}


# Op -> axis -> (port, axis of the array, how it is stored along that).
CUTS: Mapping[str, Mapping[Axis, tuple[_Cut, ...]]] = {
    "Linear": {"rows": (("weight", 0, "numbers"),), "columns": (("weight", 1, "numbers"),)},
    "LinearInt": {
        "rows": (("qweight", 0, "numbers"), ("scale", 0, "numbers"), ("zero_point", 0, "numbers")),
        "columns": (("qweight", 1, "bytes"), ("scale", 1, "groups"), ("zero_point", 1, "zero_points")),
    },
    "LinearFp8Block": {
        "rows": (("weight", 0, "numbers"), ("scale", 0, "blocks")),
        "columns": (("weight", 1, "numbers"), ("scale", 1, "blocks")),
    },
    "MlaAttention": {"heads": (("kv_b", 0, "numbers"),)},
    "MlaAttentionFp8Block": {"heads": (("kv_b", 0, "numbers"), ("kv_b_scale", 0, "blocks"))},
    "MlaAttentionInt": {
        "heads": tuple((f"{part}{scale}", 0, "numbers") for part in ("w_uk", "w_uv") for scale in ("", "_scale"))
    },
    "MoEExperts": _bank_cuts((("", "numbers"),), "numbers"),
    "MoEExpertsFp8Block": _bank_cuts((("", "numbers"), ("_scale", "blocks")), "blocks"),
    "MoEExpertsInt": _bank_cuts(_INT_BANK, "numbers"),
}  # fmt: skip


def cut_weights(rewriter: KindRewriter, node: ir.Node, axis: Axis, share: Share) -> None:
    """Give a node its share of its weights along an axis; what it computes changes accordingly."""
    ports = [port.name for port in ALL_OPS[node.op_type].inputs_given(len(node.inputs))]
    attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
    lengths: dict[int, int] = {}
    for port, array_axis, storage in CUTS[node.op_type][axis]:
        if port not in ports:
            continue
        place = ports.index(port)
        value = node.inputs[place]
        if value is None or not is_weight(value):
            raise InternalError(f"{node.name} lacks its weight {port}")
        shape = [int(dim) for dim in dims_of(value)]
        # numbers come before what belongs to them, and know how many there are
        if storage in ("numbers", "bytes"):
            per_byte = 8 // int(attributes["bits"]) if storage == "bytes" else 1
            lengths[array_axis] = shape[array_axis] * per_byte
        begin, end = share.of(lengths[array_axis])
        params, size = _slice(storage, begin, end, attributes)
        shape[array_axis] = size
        if "bits" in params:
            part = rewriter.cut(value, "slice_packed", params, shape)
        else:
            part = rewriter.cut(value, SLICE, {"axis": array_axis, **params}, shape)
        node.replace_input_with(place, part)


def _slice(
    storage: _Storage, begin: int, end: int, attributes: Mapping[str, int]
) -> tuple[dict[str, Param], int]:  # fmt: skip
    """The parameters of the slice of a stored array that has the numbers from begin to end, and its length."""
    if storage == "numbers":
        first, last = begin, end
    elif storage == "bytes":
        first, last = _exactly(begin * attributes["bits"], 8), _exactly(end * attributes["bits"], 8)
    elif storage == "blocks":
        if begin % BLOCK and begin % BLOCK + end - begin > BLOCK:
            raise InternalError(f"numbers {begin} to {end} begin and end in different FP8 blocks")
        first, last = begin // BLOCK, -(-end // BLOCK)
    else:
        first, last = _exactly(begin, attributes["group"]), _exactly(end, attributes["group"])
        if storage == "zero_points" and attributes["bits"] < 8:
            return {"begin": first, "end": last, "bits": attributes["bits"]}, -(-(last - first) // 2)
    return {"begin": first, "end": last}, last - first


def _exactly(count: int, divisor: int) -> int:
    if count % divisor:
        raise InternalError(f"{count} does not begin a group or byte of {divisor}")
    return count // divisor
