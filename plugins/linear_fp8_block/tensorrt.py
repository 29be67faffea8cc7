"""The plugins of FP8 block linears: rounding of activations, and the products with and without it."""

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
    by_rows,
    matrix,
)
from dsv3export.plugins.kernels.sizes import ceil_div, known, power_of_two
from dsv3export.plugins.kernels.stored import NATIVE_E4M3, Stored, swapped, weight_ports
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK
from dsv3export.plugins.linear_int.tensorrt import (
    WEIGHT_PREFERENCE,
    WEIGHT_TILES,
    in_parts,
    projected,
    summed,
    weight_only_gemm,
)

_KERNELS = "dsv3export.plugins.linear_fp8_block.kernel"


def _quantised(inputs: Sequence[TensorType], _: Attributes) -> tuple[TensorType, ...]:
    x = inputs[0]
    values = TensorType("F8_E4M3", x.shape)
    return values, TensorType("F32", (*x.shape[:-1], ceil_div(x.shape[-1], BLOCK)))


def _quantise(
    kernel: str,
    names: Sequence[str],
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    _: Attributes,
    tile: Tile,
    target: int,
) -> Launch:
    rows, width = matrix(inputs[0])
    values, scale = outputs
    build = Build(
        f"{_KERNELS}:{kernel}",
        arguments(dict(zip(names, inputs, strict=True)), ("rows",), {"values": values, "scale": scale}),
        (("K", width), ("ROWS", tile.rows)),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (ceil_div(width, BLOCK), ceil_div(rows, tile.rows), 1), (rows,))


QUANTISE_ACTIVATIONS = Plugin(
    name="QuantiseActivations",
    doc="x [..., K] -> e4m3 [..., K], and a scale for each 128 of a row [..., ceil(K / 128)]: amax / 448.",
    inputs=(Port("x", ACTIVATIONS),),
    results=("values", "scale"),
    outputs=_quantised,
    launch=partial(_quantise, "quantise_activations", ("x",)),
    tiles=(Tile(16, stages=1), Tile(4, warps=2, stages=1)),
    least=NATIVE_E4M3,
)

SWIGLU_QUANTISE = Plugin(
    name="SwigluQuantise",
    doc="silu(gate) * up, both [..., K], as QuantiseActivations gives it.",
    inputs=(Port("gate", ACTIVATIONS), Port("up", ACTIVATIONS)),
    results=("values", "scale"),
    outputs=_quantised,
    launch=partial(_quantise, "swiglu_quantise", ("gate", "up")),
    tiles=(Tile(16, stages=1), Tile(4, warps=2, stages=1)),
    least=NATIVE_E4M3,
)


def _norm_quantise(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    x, norm = inputs
    rows, width = matrix(x)
    values, scale = outputs
    build = Build(
        f"{_KERNELS}:norm_quantise",
        arguments({"x": x, "norm": norm}, (), {"values": values, "scale": scale}),
        (
            ("K", width),
            ("EPS", float(attributes["eps"])),
            ("GROUPS_PADDED", power_of_two(known(ceil_div(width, BLOCK)))),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (rows, 1, 1))


NORM_QUANTISE = Plugin(
    name="NormQuantise",
    doc="x [..., K], normalised by its root mean square with weights norm [K], as QuantiseActivations gives it.",
    inputs=(Port("x", ACTIVATIONS), Port("norm", ACTIVATIONS)),
    attributes=(("eps", float),),
    results=("values", "scale"),
    outputs=_quantised,
    launch=_norm_quantise,
    tiles=(Tile(1, warps=8, stages=1), Tile(1, warps=4, stages=1)),
    least=NATIVE_E4M3,
)


def _fp8_gemm_output(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    a, _, weight, _ = inputs
    return (in_parts(TensorType(str(attributes["dtype"]), (*a.shape[:-1], weight.shape[0])), attributes),)


def _fp8_gemm(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    a, a_scale, weight, scale = inputs
    rows, inner = matrix(a)
    columns, parts = known(weight.shape[0]), int(attributes["parts"])
    build = Build(
        f"{_KERNELS}:fp8_block_gemm",
        arguments({"a": a, "a_scale": a_scale, "weight": weight, "scale": scale}, ("rows",), {"y": outputs[0]}),
        (
            ("N", columns),
            ("K", inner),
            ("ROWS", tile.rows),
            ("COLUMNS", tile.columns),
            ("SWAPPED", swapped(tile.rows)),
            ("PARTS", parts),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns), parts, 1), (rows,))


FP8_BLOCK_GEMM = Plugin(
    name="Fp8BlockGemm",
    doc="y [..., N] = (a [..., K] * a_scale) @ (weight [N, K] * scale)^T, both e4m3, sums of 128 in float32.",
    inputs=(
        Port("a", ("F8_E4M3",)),
        Port("a_scale", ("F32",)),
        Port("weight", ("F8_E4M3",)),
        Port("scale", ("F32",)),
    ),
    attributes=(("dtype", str), ("parts", int)),
    results=("y",),
    outputs=_fp8_gemm_output,
    launch=_fp8_gemm,
    tiles=(
        Tile(16, 64, stages=4),
        Tile(16, 64, stages=8),
        Tile(32, 64, stages=4),
        Tile(64, 64, stages=3),
        Tile(64, 128, stages=4),
        Tile(128, 128, warps=8, stages=3),
    ),
    least=NATIVE_E4M3,
    prefer=by_rows({16: 0, 32: 2, 64: 3}, 4),
)


def _fp8_weight_gemm(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    names = ("x", "weight", "weight_scale")
    return weight_only_gemm(Stored("fp8"), names, inputs, outputs[0], attributes, tile, target)


FP8_WEIGHT_GEMM = Plugin(
    name="Fp8WeightGemm",
    doc="y [..., N] = x [..., K] @ (weight e4m3 [N, K] * scale [ceil(N / 128), ceil(K / 128)])^T.",
    inputs=(Port("x", ACTIVATIONS), *weight_ports("weight", "fp8", zero=False)),
    attributes=(("parts", int),),
    results=("y",),
    outputs=projected,
    launch=_fp8_weight_gemm,
    tiles=(*WEIGHT_TILES, Tile(128, 128, 64, warps=8, stages=3)),
    prefer=WEIGHT_PREFERENCE,
)


def linear_fp8_block(call: Call[T], x: T, weight: T, scale: T, activations: str, dtype: str, parts: int = 1) -> T:
    """`dsv3::linear_fp8_block` in plugins; y has the dtype of x, which is `dtype`. `parts` as of `linear_int`."""
    if activations == "none":
        (y,) = call(FP8_WEIGHT_GEMM, (x, weight, scale), parts=parts)
    else:
        values, x_scale = call(QUANTISE_ACTIVATIONS, (x,))
        (y,) = call(FP8_BLOCK_GEMM, (values, x_scale, weight, scale), dtype=dtype, parts=parts)
    return summed(call, y, parts, dtype)
