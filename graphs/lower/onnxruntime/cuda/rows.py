"""One row per dsv3 op that the CUDA provider computes in its own way; the others run as their standard functions."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from dsv3export.engine.manifest import Compute
from dsv3export.graphs.lower.onnxruntime.cuda.experts import experts, experts_int
from dsv3export.graphs.lower.onnxruntime.cuda.linear import linear, linear_fp8, linear_int
from dsv3export.graphs.lower.onnxruntime.cuda.mla_attention import attention
from dsv3export.graphs.lower.onnxruntime.mla_attention import STEP
from dsv3export.graphs.lower.onnxruntime.ops import Row, RowOf, generic_row
from dsv3export.graphs.lower.packed import Packed

_TYPES: Mapping[Compute, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "bf16": ir.DataType.BFLOAT16,
    "f16": ir.DataType.FLOAT16,
}
_W_UK = ("H", "Dn", "Dc")
_W_UV = ("H", "Dc", "Dv")


def rows(compute: Compute) -> RowOf:
    """How each op is run, with integer and fp8 weights multiplied in `compute`."""
    table = _table(_TYPES[compute])
    return lambda op, _: table.get(op) or generic_row(op)


def _table(narrow: ir.DataType) -> Mapping[str, Row]:
    def in_type(port: str, packing: str, sources: tuple[str, ...], dims: tuple[str, ...]) -> Packed:
        """A weight that is packed and rounded to the type that the products are in."""
        suffix = narrow.numpy().name
        return Packed(port, f"{packing}_{suffix}", sources, f"{port}.{suffix}", dims, dtype=narrow)

    return {
        "Linear": Row(linear, ("x", "weight")),
        "LinearInt": Row(
            linear_int,
            ("x", "blocks", "scale", "zero_point"),
            (
                Packed("blocks", "blocks", ("qweight",), "blocks", ("N", "G", "P/G")),
                in_type("scale", "as", ("scale",), ("N", "G")),
            ),
        ),
        "LinearFp8Block": Row(
            linear_fp8(narrow.value),
            ("x", "weight", "scale_rows"),
            (Packed("scale_rows", "scale_rows", ("scale",), "scale_rows", ("N", "ceil(K/128)")),),
        ),
        "MlaAttention": _attention(
            "MlaAttention",
            Packed("w_uk", "w_uk", ("kv_b",), "w_uk", _W_UK),
            Packed("w_uv", "w_uv", ("kv_b",), "w_uv", _W_UV),
        ),
        "MlaAttentionInt": _attention(
            "MlaAttentionInt",
            in_type("w_uk", "product", ("w_uk", "w_uk_scale"), _W_UK),
            in_type("w_uv", "product", ("w_uv", "w_uv_scale"), _W_UV),
        ),
        "MlaAttentionFp8Block": _attention(
            "MlaAttentionFp8Block",
            in_type("w_uk", "w_uk_fp8", ("kv_b", "kv_b_scale"), _W_UK),
            in_type("w_uv", "w_uv_fp8", ("kv_b", "kv_b_scale"), _W_UV),
        ),
        "MoEExperts": Row(
            experts,
            ("x", "ids", "weights", "gate_up", "down"),
            (Packed("gate_up", "interleave_gate_up", ("gate", "up"), "gate_up_proj", ("E", "2*I", "D")),),
        ),
        "MoEExpertsInt": Row(
            experts_int,
            ("x", "ids", "weights", "gate_up", "gate_up_scale", "down", "down_scale", "gate_up_zero", "down_zero"),
            (
                Packed("gate_up", "interleave_gate_up", ("gate", "up"), "gate_up", ("E", "2*I", "P")),
                in_type("gate_up_scale", "interleave_gate_up", ("gate_scale", "up_scale"), ("E", "2*I", "G")),
                in_type("down_scale", "as", ("down_scale",), ("E", "D", "H")),
                Packed(
                    "gate_up_zero", "interleave_gate_up", ("gate_zero", "up_zero"), "gate_up_zero", ("E", "2*I", "Z")
                ),
            ),
        ),
    }


def _attention(name: str, *up_projections: Packed) -> Row:
    return Row(attention(name), ("q_nope", "q_pe", "cache", "w_uk", "w_uv", "start", STEP), up_projections, (STEP,))
