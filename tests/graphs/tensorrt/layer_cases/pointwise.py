"""Arithmetic of one element at a time, types and constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.graphs.tensorrt.layer_cases.case import Case, assigned, floats, integers, out
from tests.graphs.tensorrt.small_network import Given, constant


def _elementwise(op: str, a: Tensor, b: Tensor, expected: Callable[[Tensor, Tensor], Tensor]) -> Case:
    return Case(
        f"elementwise {op} {a.dtype}",
        [Given(a, (0,)), Given(b)],
        lambda t, n, x: out(n.add_elementwise(x[0], x[1], getattr(t.ElementWiseOperation, op))),
        lambda a, b: [expected(a, b)],
    )


def _unary(op: str, expected: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Case:
    return Case(
        f"unary {op}",
        [Given(floats(3, 5) if x is None else x, (0,))],
        lambda t, n, x: out(n.add_unary(x[0], getattr(t.UnaryOperation, op))),
        lambda x: [expected(x)],
    )


def _activation(kind: str, expected: Callable[[Tensor], Tensor], **attributes: float) -> Case:
    return Case(
        f"activation {kind}",
        [Given(floats(4, 6), (0,))],
        lambda t, n, x: assigned(n.add_activation(x[0], getattr(t.ActivationType, kind)), **attributes),
        lambda x: [expected(x)],
        1e-6,
    )


_BF16_BITS = np.array([0x3F80, 0xC000, 0x3F00], np.uint16)  # 1, -2 and 0.5
_A, _B = floats(4, 3), floats(1, 3, seed=1)
_I, _J = integers(9, 4, 3, low=-8), integers(9, 1, 3, low=2, seed=1)
_P, _Q = integers(2, 4, 3, dtype=torch.bool), integers(2, 1, 3, seed=1, dtype=torch.bool)

POINTWISE = [
    _elementwise("SUM", _A, _B, torch.add),
    _elementwise("SUM", _A.bfloat16(), _B.bfloat16(), lambda a, b: (a.double() + b.double()).bfloat16()),
    _elementwise("PROD", _A.half(), _B.half(), lambda a, b: (a.double() * b.double()).half()),
    _elementwise("SUB", _I, _J, torch.sub),
    _elementwise("DIV", _A, _B, torch.div),
    _elementwise("DIV", _I, _J, lambda a, b: torch.from_numpy(np.trunc(a.numpy() / b.numpy()).astype(np.int32))),
    _elementwise("FLOOR_DIV", _I, _J, lambda a, b: torch.from_numpy(a.numpy() // b.numpy())),
    _elementwise("MAX", _A, _B, torch.maximum),
    _elementwise("MIN", _I, _J, torch.minimum),
    _elementwise("POW", _A.abs(), _B, torch.pow),
    _elementwise("EQUAL", _I, _J, torch.eq),
    _elementwise("GREATER", _A, _B, torch.gt),
    _elementwise("LESS", _I.long(), _J.long(), torch.lt),
    _elementwise("AND", _P, _Q, lambda a, b: a & b),
    _elementwise("OR", _P, _Q, lambda a, b: a | b),
    _elementwise("XOR", _P, _Q, lambda a, b: a ^ b),
    _unary("EXP", torch.exp),
    _unary("EXP", lambda x: x.double().exp().bfloat16(), floats(3, 5).bfloat16()),
    _unary("LOG", torch.log, floats(3, 5).abs()),
    _unary("SQRT", torch.sqrt, floats(3, 5).abs()),
    _unary("RECIP", torch.reciprocal),
    _unary("ABS", torch.abs, _I),
    _unary("NEG", torch.neg),
    _unary("SIN", torch.sin),
    _unary("COS", torch.cos),
    _unary("CEIL", torch.ceil),
    _unary("FLOOR", torch.floor),
    _unary("ERF", torch.erf),
    _unary("NOT", torch.logical_not, _P),
    _unary("SIGN", torch.sign),
    _unary("ROUND", lambda x: torch.from_numpy(np.rint(x.numpy())), torch.tensor([[-2.5, -1.5, 0.5, 1.5, 2.5]])),
    _activation("RELU", lambda x: x.clamp(min=0)),
    _activation("SIGMOID", lambda x: 1 / (1 + (-x).exp())),
    _activation("TANH", torch.tanh),
    _activation("CLIP", lambda x: x.clamp(-0.25, 0.5), alpha=-0.25, beta=0.5),
    _activation("LEAKY_RELU", lambda x: torch.where(x > 0, x, 0.1 * x), alpha=0.1),
    _activation("SOFTPLUS", lambda x: 2 * (3 * x).exp().log1p(), alpha=2.0, beta=3.0),
    _activation("HARD_SIGMOID", lambda x: (0.2 * x + 0.5).clamp(0, 1), alpha=0.2, beta=0.5),
    _activation("GELU_ERF", lambda x: x * 0.5 * (1 + (x / 2**0.5).erf())),
    Case(
        "activation SIGMOID bfloat16",
        [Given(floats(4, 6, dtype=torch.bfloat16))],
        lambda t, n, x: out(n.add_activation(x[0], t.ActivationType.SIGMOID)),
        lambda x: [(1 / (1 + (-x.double()).exp())).bfloat16()],
    ),
    Case(
        "cast float to int truncates",
        [Given(torch.tensor([-1.7, -0.2, 0.9, 3.5]))],
        lambda t, n, x: out(n.add_cast(x[0], t.int32)),
        lambda x: [torch.tensor([-1, 0, 0, 3], dtype=torch.int32)],
    ),
    Case(
        "cast float to bfloat16 rounds to even",
        [Given(torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.3]))],
        lambda t, n, x: out(n.add_cast(x[0], t.bfloat16)),
        lambda x: [torch.tensor([1.0, 1.0, 1 + 2**-6, -3.296875], dtype=torch.bfloat16)],
    ),
    Case(
        "select",
        [Given(_P, (0,)), Given(_A, (0,)), Given(_B)],
        lambda t, n, x: out(n.add_select(*x)),
        lambda p, a, b: [torch.from_numpy(np.where(p, a, b))],
    ),
    Case(
        "identity and constant",
        [Given(_A)],
        lambda t, n, x: [n.add_identity(x[0]).get_output(0), constant(t, n, [[1.5, -2.0]])],
        lambda a: [a, torch.tensor([[1.5, -2.0]])],
    ),
    Case(
        "constant of bytes at an address",
        [Given(_A.bfloat16())],
        lambda t, n, x: out(n.add_constant((3,), t.Weights(t.bfloat16, _BF16_BITS.ctypes.data, 3))),
        lambda a: [torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)],
    ),
    Case(
        "fill with steps",
        [Given(_A)],
        lambda t, n, x: assigned(n.add_fill((4,), t.FillOperation.LINSPACE, t.float32), alpha=1.0, beta=0.5),
        lambda a: [torch.tensor([1.0, 1.5, 2.0, 2.5])],
    ),
    Case(
        "fill of a dynamic shape",
        [Given(_A, (0,))],
        lambda t, n, x: _dynamic_fill(t, n, x[0]),
        lambda a: [torch.arange(4, dtype=torch.int64) * 3 + 2],
    ),
]


def _dynamic_fill(trt: Any, network: Any, x: Any) -> list[Any]:
    """2, 5, 8, ... as many as x has rows."""
    rows = network.add_slice(network.add_shape(x).get_output(0), (0,), (1,), (1,)).get_output(0)
    fill = network.add_fill((1,), trt.FillOperation.LINSPACE, trt.int64)
    fill.set_input(0, rows)
    fill.set_input(1, constant(trt, network, 2, np.int64))
    fill.set_input(2, constant(trt, network, [3], np.int64))
    return out(fill)
