"""One row per op that has a native kernel: a call of it. The other ops keep the rows of ONNX Runtime's own kernels.

A row takes the weights that the op's other row packs (`ops.py`), so that both graphs have one weight table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from dsv3export.graphs.lower.onnxruntime.mla_attention import head_groups
from dsv3export.graphs.lower.onnxruntime.ops import HALF_ROWS, ROWS, Row, generic_row, row
from dsv3export.plugins.registry import Attributes, Dims
from dsv3export.runtime.cpu_kernels import DOMAIN

# ONNX text of a node's attributes.
AttributeText = Callable[[Dims, Attributes], Mapping[str, int | str | float]]


def _no_attributes(dims: Dims, attributes: Attributes) -> Mapping[str, int | str | float]:
    return {}


def native(
    kernel: str,
    portable: Row,
    inputs: Sequence[str] | Callable[[Dims], Sequence[str]],
    attributes: AttributeText = _no_attributes,
    optional: int = 0,
    outputs: Mapping[str, ir.DataType] = MappingProxyType({"y": ir.DataType.FLOAT}),
    float8: Sequence[str] = (),
) -> Row:
    """A row that is one node.

    The casts say what types come out, which ONNX Runtime, while it looks at functions, knows of no custom op; they are
    gone when the session runs.

    Args:
        kernel: The name of the kernel's op.
        portable: The op's other row, whose weights it takes.
        inputs: Of the kernel, in its order. They may depend on the op's dims.
        attributes: Of the node.
        optional: How many of the last inputs come with zero points only.
        outputs: Types by name, in order.
        float8: The inputs that are float8. They go by way of an Identity, which is gone when the session runs too: a
            function's input that only custom ops use may have every type but that.
    """

    def inputs_for(dims: Dims) -> tuple[str, ...]:
        return tuple(inputs(dims) if callable(inputs) else inputs)

    def function(dims: Dims, given: Attributes) -> str:
        every = inputs_for(dims)
        used = every if "Z" in dims or not optional else every[:-optional]
        formals = ", ".join(used)
        text = ", ".join(f"{name} = {_literal(value)}" for name, value in attributes(dims, given).items())
        results = ", ".join(f"{name}_made" for name in outputs)
        arguments = ", ".join(f"{name}_typed" if name in float8 else name for name in used)
        typed = "".join(f"""
    {name}_typed = Identity ({name})""" for name in float8)  # fmt: skip
        casts = "".join(f"""
    {name} = Cast <to = {dtype.value}> ({name}_made)""" for name, dtype in outputs.items())  # fmt: skip
        return f"""
{kernel} ({formals}) => ({", ".join(outputs)}) {{{typed}
    {results} = {DOMAIN}.{kernel} {f"<{text}> " if text else ""}({arguments}){casts}
}}
"""

    return Row(function, inputs_for, portable.packed)


def _literal(value: int | str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _linear_int(dims: Dims, given: Attributes) -> Mapping[str, int | str | float]:
    return {"K": dims["K"], "N": dims["N"], **given}


def _experts_int(dims: Dims, given: Attributes) -> Mapping[str, int | str | float]:
    return {"K": dims["D"], "I": dims["I"], **given}


def _as_given(dims: Dims, given: Attributes) -> Mapping[str, int | str | float]:
    return given


def _attention(
    weights: str, portable: Row, names: Sequence[str] | Callable[[Dims], Sequence[str]], float8: Sequence[str] = ()
) -> Row:
    """A row of attention, over the cache as it is, whose `weights` are the inputs with these names."""

    def inputs(dims: Dims) -> tuple[str, ...]:
        return ("q_nope", "q_pe", "cache", "start", *(names(dims) if callable(names) else names))

    def attributes(dims: Dims, given: Attributes) -> Mapping[str, int | str | float]:
        return {**{size: dims[size] for size in ("H", "Dn", "Dr", "Dc", "Dv")}, **given, "weights": weights}

    return native("MlaAttention", portable, inputs, attributes, outputs={"out": ir.DataType.FLOAT}, float8=float8)


def _int_projections(dims: Dims) -> tuple[str, ...]:
    groups = range(len(head_groups(dims)))
    return tuple(f"{part}_{i}_{kind}" for part in ("w_uk", "w_uv") for i in groups for kind in ("q", "scale"))


_LINEAR = ("x", "weight")

_ROWS: Mapping[str, Row] = {
    "Linear": native("Linear", ROWS["Linear"], _LINEAR),
    "LinearFp8Block": native(
        "LinearFp8Block", generic_row("LinearFp8Block"), ("x", "weight", "scale"), _as_given, float8=("weight",)
    ),
    "LinearInt": native(
        "LinearInt", ROWS["LinearInt"], ("x", "blocks", "scale", "zero_point"), _linear_int, optional=1
    ),
    "MlaAttention": _attention("float", ROWS["MlaAttention"], ("w_uk", "w_uv")),
    "MlaAttentionInt": _attention("int", ROWS["MlaAttentionInt"], _int_projections),
    "MlaAttentionFp8Block": _attention("fp8", ROWS["MlaAttentionFp8Block"], ("kv_b", "kv_b_scale"), ("kv_b",)),
    "MoEExperts": native("MoEExperts", ROWS["MoEExperts"], ("x", "ids", "weights", "gate_up", "down")),
    "MoEExpertsFp8Block": native(
        "MoEExpertsFp8Block",
        generic_row("MoEExpertsFp8Block"),
        ("x", "ids", "weights", "gate", "gate_scale", "up", "up_scale", "down", "down_scale"),
        _as_given,
        float8=("gate", "up", "down"),
    ),
    "MoEExpertsInt": native(
        "MoEExpertsInt",
        ROWS["MoEExpertsInt"],
        ("x", "ids", "weights", "gate_up", "gate_up_scale", "down", "down_scale", "gate_up_zero", "down_zero"),
        _experts_int,
        optional=2,
    ),
    "MoERoute": native(
        "MoERoute",
        generic_row("MoERoute"),
        ("logits", "bias"),
        _as_given,
        outputs={"ids": ir.DataType.INT64, "weights": ir.DataType.FLOAT},
    ),
}
_HALF_ROWS: Mapping[str, Row] = {
    "Linear": native("Linear", HALF_ROWS["Linear"], _LINEAR),
    "MlaAttention": _attention("half", HALF_ROWS["MlaAttention"], ("kv_b",)),
    "MoEExperts": native("MoEExperts", HALF_ROWS["MoEExperts"], ("x", "ids", "weights", "gate", "up", "down")),
}


def has_kernel(op: str, in_16_bits: bool = False) -> bool:
    """Whether an op has a native kernel, for weights in 16 bits or others."""
    return op in (_HALF_ROWS if in_16_bits else _ROWS)


def native_row(op: str, in_16_bits: bool = False) -> Row:
    """The row of an op, by whether its weights are bfloat16 or float16; of one without a kernel the portable one."""
    return (_HALF_ROWS if in_16_bits else _ROWS).get(op) or row(op, in_16_bits)
