"""Checks of the FP8 block linears' kernels: around a block's borders, one row, cut rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.kernels.stored import NATIVE_E4M3
from dsv3export.plugins.linear_fp8_block.matmul import fp8_matmul, quantise_activations
from dsv3export.plugins.linear_fp8_block.tensorrt import (
    NORM_QUANTISE,
    QUANTISE_ACTIVATIONS,
    SWIGLU_QUANTISE,
    linear_fp8_block,
)

_SHAPES = ((1, 127, 127), (3, 128, 128), (2, 129, 129), (1, 256, 160), (17, 300, 200), (70, 64, 130))


def linear_check(name: str, shape: tuple[int, int, int], activations: str, parts: int = 1) -> Check:
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


def _fused(name: str, rows: int, inner: int) -> tuple[Check, Check]:
    """The rounding fused with what comes before it; a sum in another order may tip a number over an edge."""

    def normed(call: Call[Tensor], dtype: str) -> Pairs:
        random = Samples(name)
        x, norm = random.normal(rows, inner, scale=3.0).to(DTYPES[dtype]), random.uniform(0.5, 2.0, inner)
        norm = norm.to(DTYPES[dtype])
        result = call(NORM_QUANTISE, (x, norm), eps=1e-6)
        exact = torch.nn.functional.rms_norm(x.float(), (inner,), norm.float(), 1e-6)
        return [(_widened(*result), _widened(*quantise_activations(exact)))]

    def gated(call: Call[Tensor], dtype: str) -> Pairs:
        random = Samples(name)
        gate, up = (random.normal(rows, inner, scale=2.0).to(DTYPES[dtype]) for _ in range(2))
        result = call(SWIGLU_QUANTISE, (gate, up))
        exact = torch.nn.functional.silu(gate.float()) * up.float()
        return [(_widened(*result), _widened(*quantise_activations(exact)))]

    return (
        Check("QuantiseActivations", f"after a norm, {name}", normed, ("BF16", "F16"), NATIVE_E4M3, slack=4.0),
        Check("QuantiseActivations", f"after SwiGLU, {name}", gated, ("BF16", "F16"), NATIVE_E4M3, slack=4.0),
    )


def _widened(values: Tensor, scale: Tensor) -> Tensor:
    return values.float() * scale.repeat_interleave(128, dim=-1)[..., : values.shape[-1]]


CHECKS = (
    _quantise("one row", 1, 128, 1.0),
    _quantise("cut group", 3, 129, 1.0),
    _quantise("more rows than a program takes", 37, 300, 1e-3),
    _quantise("large", 2, 127, 1e4),
    *_fused("one row", 1, 128),
    *_fused("cut group, more rows than a program takes", 19, 300),
    *(
        linear_check(f"{rows} x {inner} x {columns}, activations {activations}", (rows, inner, columns), activations)
        for rows, inner, columns in _SHAPES
        for activations in ("none", "1x128")
    ),
    *(linear_check(f"K in 4 parts, one empty, {each}", (3, 3 * 128 + 5, 130), each, 4) for each in ("none", "1x128")),
)
