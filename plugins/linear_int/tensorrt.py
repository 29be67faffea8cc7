"""The plugins of linears with 8- and 4-bit weights in groups, with and without zero points."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dsv3export.plugins.kernels.plugin import (
    ACTIVATIONS,
    Attribute,
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
    by_rows,
    matrix,
    same_type,
)
from dsv3export.plugins.kernels.sizes import ceil_div, known, power_of_two
from dsv3export.plugins.kernels.stored import Stored, absent, as_bytes, weight_ports

WEIGHT_TILES = (
    Tile(16, 64, stages=4),
    Tile(16, 128, stages=3),
    Tile(64, 64, 64),
    Tile(64, 128, 64, warps=8),
)
"""For products with stored weights: few rows, then many."""
WEIGHT_PREFERENCE = by_rows({32: 1}, 3)


def in_parts(whole: TensorType, attributes: Attributes) -> TensorType:
    """The type of a product [..., N], or of its parts, float32 [parts, ..., N], if K is shared out."""
    parts = int(attributes["parts"])
    return whole if parts == 1 else TensorType("F32", (parts, *whole.shape))


def projected(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    """x [..., K] times a weight [N, ...]: [..., N], or its parts."""
    return (in_parts(same_type(inputs[0], inputs[1].shape[0]), attributes),)


def weight_only_gemm(
    stored: Stored,
    names: Sequence[str],
    inputs: Sequence[TensorType],
    output: TensorType,
    attributes: Attributes,
    tile: Tile,
    target: int,
) -> Launch:
    """The launch of a product with a stored weight; `names` are those of the inputs, "x" and "weight" first."""
    rows, inner = matrix(inputs[0])
    columns, parts = known(inputs[1].shape[0]), int(attributes["parts"])
    packed = () if stored.format == "fp8" else ("weight", "weight_zero")
    given = as_bytes(dict(zip(names, inputs, strict=True)), packed)
    build = Build(
        "dsv3export.plugins.linear_int.kernel:weight_only_gemm",
        arguments(given, ("rows",), {"y": output}, stored.raw(("weight",), target)),
        (*absent(("weight_zero",), names), *stored.constants(tile, tile.rows, columns, inner), ("PARTS", parts)),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns), parts, 1), (rows,))


def _gemm(
    names: tuple[str, ...],
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    attributes: Attributes,
    tile: Tile,
    target: int,
) -> Launch:
    return weight_only_gemm(Stored.of_integers(attributes), names, inputs, outputs[0], attributes, tile, target)


def _linear_int(name: str, zero: bool) -> Plugin:
    weights = weight_ports("weight", "int8", zero)
    return Plugin(
        name=name,
        doc="y [..., N] = x [..., K] @ (packed weight [N, K])^T"
        + (", with zero points." if zero else ", stored with an offset of 2^(bits-1)."),
        inputs=(Port("x", ACTIVATIONS), *weights),
        attributes=(("bits", int), ("group", int), ("activations", str), ("parts", int)),
        results=("y",),
        outputs=projected,
        launch=partial(_gemm, ("x", *(port.name for port in weights))),
        tiles=WEIGHT_TILES,
        prefer=WEIGHT_PREFERENCE,
    )


LINEAR_INT = _linear_int("LinearInt", zero=False)
LINEAR_INT_ZERO = _linear_int("LinearIntZero", zero=True)


def _summed(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    return (TensorType(str(attributes["dtype"]), inputs[0].shape[1:]),)


def _sum(inputs: Sequence[TensorType], outputs: Sequence[TensorType], _: Attributes, tile: Tile, target: int) -> Launch:
    (partial_sums,) = inputs
    rows, width = matrix(outputs[0])
    columns = min(tile.columns, power_of_two(width))
    build = Build(
        "dsv3export.plugins.linear_int.kernel:sum_parts",
        arguments({"partial": partial_sums}, ("rows",), {"y": outputs[0]}),
        (("N", width), ("PARTS", known(partial_sums.shape[0])), ("COLUMNS", columns)),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (rows, ceil_div(width, columns), 1), (rows,))


SUM_PARTS = Plugin(
    name="SumParts",
    doc="The parts of a product, float32 [parts, ..., N] -> [..., N], added in their order.",
    inputs=(Port("partial", ("F32",)),),
    attributes=(("dtype", str),),
    results=("y",),
    outputs=_summed,
    launch=_sum,
    tiles=(Tile(1, 1024, stages=1), Tile(1, 256, stages=1)),
)


def summed(call: Call[T], y: T, parts: int, dtype: str) -> T:
    """The product itself, of what a plugin gave for `parts`."""
    return y if parts == 1 else call(SUM_PARTS, (y,), dtype=dtype)[0]


def linear_int(
    call: Call[T],
    x: T,
    qweight: T,
    scale: T,
    zero_point: T | None,
    bits: int,
    group: int,
    activations: str,
    dtype: str = "",
    parts: int = 1,
) -> T:
    """`dsv3::linear_int` in plugins; y has the dtype of x, which is `dtype`.

    Args:
        parts: Programs that share K: where the columns alone are too few for the device (`parts_for`).
    """
    plugin, zeros = (LINEAR_INT, ()) if zero_point is None else (LINEAR_INT_ZERO, (zero_point,))
    attributes: dict[str, Attribute] = {"bits": bits, "group": group, "activations": activations, "parts": parts}
    (y,) = call(plugin, (x, qweight, scale, *zeros), **attributes)
    return summed(call, y, parts, dtype)
