"""One row per op that has a native kernel: a call of it. The other ops keep the rows of ONNX Runtime's own kernels.

A row takes the weights that the op's other row packs (`ops.py`), so that both graphs have one weight table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

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
    inputs: Sequence[str],
    attributes: AttributeText = _no_attributes,
    optional: int = 0,
    outputs: Mapping[str, ir.DataType] = MappingProxyType({"y": ir.DataType.FLOAT}),
) -> Row:
    """A row that is one node.

    The casts say what types come out, which ONNX Runtime, while it looks at functions, knows of no custom op; they are
    gone when the session runs.

    Args:
        kernel: The name of the kernel's op.
        portable: The op's other row, whose weights it takes.
        inputs: Of the kernel, in its order.
        attributes: Of the node.
        optional: How many of the last inputs come with zero points only.
        outputs: Types by name, in order.
    """

    def function(dims: Dims, given: Attributes) -> str:
        formals = ", ".join(inputs if "Z" in dims or not optional else inputs[:-optional])
        text = ", ".join(f"{name} = {_literal(value)}" for name, value in attributes(dims, given).items())
        results = ", ".join(f"{name}_made" for name in outputs)
        casts = "".join(f"""
    {name} = Cast <to = {dtype.value}> ({name}_made)""" for name, dtype in outputs.items())  # fmt: skip
        return f"""
{kernel} ({formals}) => ({", ".join(outputs)}) {{
    {results} = {DOMAIN}.{kernel} {f"<{text}> " if text else ""}({formals}){casts}
}}
"""

    return Row(function, tuple(inputs), portable.packed)


def _literal(value: int | str | float) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _linear_int(dims: Dims, given: Attributes) -> Mapping[str, int | str | float]:
    return {"K": dims["K"], "N": dims["N"], **given}


def _experts_int(dims: Dims, given: Attributes) -> Mapping[str, int | str | float]:
    return {"K": dims["D"], "I": dims["I"], **given}


def _as_given(dims: Dims, given: Attributes) -> Mapping[str, int | str | float]:
    return given


_LINEAR = ("x", "weight")

_ROWS: Mapping[str, Row] = {
    "Linear": native("Linear", ROWS["Linear"], _LINEAR),
    "LinearInt": native(
        "LinearInt", ROWS["LinearInt"], ("x", "blocks", "scale", "zero_point"), _linear_int, optional=1
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
}


def has_kernel(op: str, in_16_bits: bool = False) -> bool:
    """Whether an op has a native kernel, for weights in 16 bits or others."""
    return op in (_HALF_ROWS if in_16_bits else _ROWS)


def native_row(op: str, in_16_bits: bool = False) -> Row:
    """The row of an op, by whether its weights are bfloat16 or float16; of one without a kernel the portable one."""
    return (_HALF_ROWS if in_16_bits else _ROWS).get(op) or row(op, in_16_bits)
