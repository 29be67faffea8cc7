"""Checks of the FP8 block linears' kernels: around a block's borders, one row, cut rows and columns."""

from __future__ import annotations

from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.kernels.stored import NATIVE_E4M3
from dsv3export.plugins.linear_fp8_block.matmul import fp8_matmul, quantise_activations
from dsv3export.plugins.linear_fp8_block.tensorrt import QUANTISE_ACTIVATIONS, linear_fp8_block

_SHAPES = ((1, 127, 127), (3, 128, 128), (2, 129, 129), (1, 256, 160), (17, 300, 200), (70, 64, 130))


def _linear(name: str, shape: tuple[int, int, int], activations: str, parts: int = 1) -> Check:
    rows, inner, columns = shape

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random = Samples(name)
        x = random.normal(rows, inner).to(DTYPES[dtype])
        weight, scale = random.fp8_blocks(columns, inner)
        y = linear_fp8_block(call, x, weight, scale, activations, dtype, parts)
        return [(y, fp8_matmul(x.float(), weight, scale, activations))]

    return Check("LinearFp8Block", name, compare, least=80 if activations == "none" else NATIVE_E4M3)


def _quantise(name: str, rows: int, inner: int, size: float) -> Check:
    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        x = Samples(name).normal(rows, inner, scale=size).to(DTYPES[dtype])
        x[0, : min(inner, 128)] = 0.0
        values, scale = call(QUANTISE_ACTIVATIONS, (x,))
        right_values, right_scale = quantise_activations(x.float())
        return [(values.float(), right_values.float()), (scale, right_scale)]

    return Check("QuantiseActivations", name, compare, least=NATIVE_E4M3, exact=True)


CHECKS = (
    _quantise("one row", 1, 128, 1.0),
    _quantise("cut group", 3, 129, 1.0),
    _quantise("more rows than a program takes", 37, 300, 1e-3),
    _quantise("large", 2, 127, 1e4),
    *(
        _linear(f"{rows} x {inner} x {columns}, activations {activations}", (rows, inner, columns), activations)
        for rows, inner, columns in _SHAPES
        for activations in ("none", "1x128")
    ),
    *(_linear(f"K in 4 parts, one empty, {each}", (3, 3 * 128 + 5, 130), each, 4) for each in ("none", "1x128")),
)
