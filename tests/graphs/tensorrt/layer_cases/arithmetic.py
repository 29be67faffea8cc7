"""Products, sums, norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.graphs.tensorrt.layer_cases.case import Case, assigned, floats, integers, out
from tests.graphs.tensorrt.small_network import Given, constant


def _product(name: str, a: Tensor, b: Tensor, ops: tuple[str, str], equation: str, tolerance: float = 1e-6) -> Case:
    return Case(
        f"matrix multiply {name} {a.dtype}",
        [Given(a, (0,)), Given(b)],
        lambda t, n, x: out(
            n.add_matrix_multiply(x[0], getattr(t.MatrixOperation, ops[0]), x[1], getattr(t.MatrixOperation, ops[1]))
        ),
        lambda a, b: [torch.einsum(equation, a.double(), b.double()).to(a.dtype)],
        tolerance,
    )


def _reduce(op: str, axes: tuple[int, ...], keep: bool, expected: Any, dtype: torch.dtype = torch.float32) -> Case:
    return Case(
        f"reduce {op} {axes} {keep} {dtype}",
        [Given(floats(3, 4, 5, dtype=dtype), (0,))],
        lambda t, n, x: out(n.add_reduce(x[0], getattr(t.ReduceOperation, op), sum(1 << a for a in axes), keep)),
        lambda x: [torch.from_numpy(expected(x.double().numpy(), axis=axes, keepdims=keep)).to(dtype)],
        1e-6,
    )


def _cumulative(exclusive: bool, reverse: bool, expected: Any) -> Case:
    return Case(
        f"cumulative exclusive={exclusive} reverse={reverse}",
        [Given(integers(9, 2, 4), (0,))],
        lambda t, n, x: out(
            n.add_cumulative(x[0], constant(t, n, 1, np.int32), t.CumulativeOperation.SUM, exclusive, reverse)
        ),
        lambda x: [torch.tensor([expected(row) for row in x.tolist()], dtype=torch.int32)],
    )


ARITHMETIC = [
    _product("plain", floats(4, 7), floats(7, 3, seed=1), ("NONE", "NONE"), "mk,kn->mn"),
    _product("transposed", floats(7, 4), floats(3, 7, seed=1), ("TRANSPOSE", "TRANSPOSE"), "km,nk->mn"),
    _product("broadcast batch", floats(2, 4, 7), floats(1, 3, 7, seed=1), ("NONE", "TRANSPOSE"), "bmk,cnk->bmn"),
    _product("by a vector", floats(2, 4, 7), floats(2, 7, seed=1), ("NONE", "VECTOR"), "bmk,bk->bm"),
    _product("vectors", floats(2, 7), floats(2, 7, seed=1), ("VECTOR", "VECTOR"), "bk,bk->b"),
    _product("narrow", floats(4, 300).bfloat16(), floats(300, 3, seed=1).bfloat16(), ("NONE", "NONE"), "mk,kn->mn"),
    _product("narrow", floats(4, 300).half(), floats(3, 300, seed=1).half(), ("NONE", "TRANSPOSE"), "mk,nk->mn"),
    _reduce("SUM", (2,), True, np.sum),
    _reduce("AVG", (1, 2), False, np.mean),
    _reduce("MAX", (0,), False, np.max),
    _reduce("MIN", (0, 2), True, np.min),
    _reduce("PROD", (1, 2), False, np.prod),
    _reduce("SUM", (1, 2), False, np.sum, torch.bfloat16),
    Case(
        "softmax, on a given axis",
        [Given(floats(2, 3, 4, 5), (0,))],
        lambda t, n, x: assigned(n.add_softmax(x[0]), axes=1 << 3),
        lambda x: [x.double().softmax(3).float()],
        1e-6,
    ),
    Case(
        "softmax, on the default axis, narrow",
        [Given(floats(2, 3, 4, 5, dtype=torch.bfloat16))],
        lambda t, n, x: out(n.add_softmax(x[0])),
        lambda x: [x.double().softmax(1).bfloat16()],
    ),
    _cumulative(False, False, lambda row: [sum(row[: i + 1]) for i in range(len(row))]),
    _cumulative(True, False, lambda row: [sum(row[:i]) for i in range(len(row))]),
    _cumulative(False, True, lambda row: [sum(row[i:]) for i in range(len(row))]),
    _cumulative(True, True, lambda row: [sum(row[i + 1 :]) for i in range(len(row))]),
    Case(
        "normalisation",
        [Given(floats(3, 8), (0,))],
        lambda t, n, x: assigned(
            n.add_normalization_v2(x[0], constant(t, n, [[2.0] * 8]), constant(t, n, [[0.5] * 8]), 2), epsilon=1e-6
        ),
        lambda x: [torch.nn.functional.layer_norm(x.double(), (8,), eps=1e-6).float() * 2 + 0.5],
        1e-6,
    ),
    Case(
        "einsum",
        [Given(floats(3, 4), (0,)), Given(floats(4, 5, seed=1))],
        lambda t, n, x: out(n.add_einsum(x, "ij,jk->ik")),
        lambda a, b: [(a.double() @ b.double()).float()],
        1e-6,
    ),
]
