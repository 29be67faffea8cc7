"""Checks of linears with integer weights: groups of 16 to 128, cut groups, zero points, int8 activations."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.linear_int.op import linear_int as definition
from dsv3export.plugins.linear_int.tensorrt import linear_int


def linear_check(
    name: str,
    shape: tuple[int, int, int],
    bits: int,
    group: int,
    zero: bool = False,
    activations: str = "none",
    parts: int = 1,
) -> Check:
    rows, inner, columns = shape

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random = Samples(name)
        x = random.normal(rows, inner).to(DTYPES[dtype])
        qweight, scale, zero_point = random.packed((columns,), inner, bits, group, zero)
        y = linear_int(call, x, qweight, scale, zero_point, bits, group, activations, dtype, parts)
        return [(y, definition(x.float(), qweight, scale, zero_point, bits, group, activations))]

    return Check("LinearInt", name, compare)


def _signed(name: str) -> Check:
    """TensorRT has signed bytes where the graph has unsigned ones; the bits are the same."""

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random = Samples(name)
        x = random.normal(2, 128).to(DTYPES[dtype])
        qweight, scale, _ = random.packed((65,), 128, 8, 64, False)
        y = linear_int(call, x, qweight.view(torch.int8), scale, None, 8, 64, "none")
        return [(y, definition(x.float(), qweight, scale, None, 8, 64, "none"))]

    return Check("LinearInt", name, compare)


CHECKS = (
    linear_check("int8, one row", (1, 128, 127), 8, 128),
    linear_check("int8, groups of 32, last one cut", (3, 72, 129), 8, 32),
    linear_check("int8, zero points", (17, 128, 64), 8, 64, zero=True),
    linear_check("int8, activations too", (5, 100, 70), 8, 32, activations="int8"),
    linear_check("int4, one row", (1, 256, 64), 4, 128),
    linear_check("int4, groups of 16", (3, 64, 5), 4, 16),
    linear_check("int4, last group cut", (65, 150, 66), 4, 64),
    linear_check("int4, odd number of zero points", (3, 96, 65), 4, 32, zero=True),
    linear_check("int4, activations too, zero points", (9, 256, 40), 4, 128, zero=True, activations="int8"),
    linear_check("int4, zero points, K in parts", (17, 384, 130), 4, 128, zero=True, parts=3),
    linear_check("int8, more parts than steps", (2, 128, 65), 8, 64, parts=4),
    _signed("int8, as signed bytes"),
)
