"""The plugins of linears with 8- and 4-bit weights in groups, with and without zero points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dsv3export.plugins.kernels.plugin import (
    ACTIVATIONS,
    Attributes,
    Build,
    Call,
    Launch,
    Plugin,
    Port,
    T,
    TensorType,
    Tile,
    arguments,
    matrix,
    same_type,
)
from dsv3export.plugins.kernels.sizes import ceil_div, known
from dsv3export.plugins.kernels.stored import Stored, absent, as_bytes, weight_ports

WEIGHT_TILES = (Tile(16, 64, stages=3), Tile(64, 64, 64), Tile(64, 128, 64, warps=8))
"""For products with stored weights: few rows, then many."""


def projected(inputs: Sequence[TensorType], _: Attributes) -> tuple[TensorType, ...]:
    """x [..., K] times a weight [N, ...]: [..., N]."""
    return (same_type(inputs[0], inputs[1].shape[0]),)


def weight_only_gemm(
    stored: Stored, names: Sequence[str], inputs: Sequence[TensorType], output: TensorType, tile: Tile, target: int
) -> Launch:
    """The launch of a product with a stored weight; `names` are those of the inputs, "x" and "weight" first."""
    rows, inner = matrix(inputs[0])
    columns = known(inputs[1].shape[0])
    packed = () if stored.format == "fp8" else ("weight", "weight_zero")
    given = as_bytes(dict(zip(names, inputs, strict=True)), packed)
    build = Build(
        "dsv3export.plugins.linear_int.kernel:weight_only_gemm",
        arguments(given, ("rows",), {"y": output}, stored.raw(("weight",), target)),
        (*absent(("weight_zero",), names), *stored.constants(tile, columns, inner), ("ROWS", tile.rows)),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns), 1, 1), (rows,))


def _gemm(
    names: tuple[str, ...],
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    attributes: Attributes,
    tile: Tile,
    target: int,
) -> Launch:
    return weight_only_gemm(Stored.of_integers(attributes), names, inputs, outputs[0], tile, target)


def _linear_int(name: str, zero: bool) -> Plugin:
    weights = weight_ports("weight", "int8", zero)
    return Plugin(
        name=name,
        doc="y [..., N] = x [..., K] @ (packed weight [N, K])^T"
        + (", with zero points." if zero else ", stored with an offset of 2^(bits-1)."),
        inputs=(Port("x", ACTIVATIONS), *weights),
        attributes=(("bits", int), ("group", int), ("activations", str)),
        results=("y",),
        outputs=projected,
        launch=partial(_gemm, ("x", *(port.name for port in weights))),
        tiles=WEIGHT_TILES,
    )


LINEAR_INT = _linear_int("LinearInt", zero=False)
LINEAR_INT_ZERO = _linear_int("LinearIntZero", zero=True)


def linear_int(
    call: Call[T], x: T, qweight: T, scale: T, zero_point: T | None, bits: int, group: int, activations: str
) -> T:
    """`dsv3::linear_int` in plugins; y has the dtype of x."""
    plugin, zeros = (LINEAR_INT, ()) if zero_point is None else (LINEAR_INT_ZERO, (zero_point,))
    (y,) = call(plugin, (x, qweight, scale, *zeros), bits=bits, group=group, activations=activations)
    return y
