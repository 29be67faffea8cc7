"""Layers that treat each element by itself: elementwise, unary, activation, cast, select, constants.

16-bit floats are evaluated in float32 and rounded once, at the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.replay_layers.layer import DTYPES, Inputs, Layer, Rule, present, wide
from dsv3export.graphs.lower.tensorrt.replay_layers.memory import tensor_of_bytes

_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017, what torch uses too


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": _divide,
    "POW": torch.pow,
    "FLOOR_DIV": torch.floor_divide,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "EXP": torch.exp,
    "LOG": torch.log,
    "SQRT": torch.sqrt,
    "RECIP": torch.reciprocal,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "SIN": torch.sin,
    "COS": torch.cos,
    "TAN": torch.tan,
    "SINH": torch.sinh,
    "COSH": torch.cosh,
    "ASIN": torch.asin,
    "ACOS": torch.acos,
    "ATAN": torch.atan,
    "ASINH": torch.asinh,
    "ACOSH": torch.acosh,
    "ATANH": torch.atanh,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ERF": torch.erf,
    "NOT": torch.logical_not,
    "SIGN": torch.sign,
    "ROUND": torch.round,  # half to even, as TensorRT
    "ISINF": torch.isinf,
    "ISNAN": torch.isnan,
}

_ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "RELU": lambda x, a, b: x.relu(),
    "SIGMOID": lambda x, a, b: x.sigmoid(),
    "TANH": lambda x, a, b: x.tanh(),
    "LEAKY_RELU": lambda x, a, b: F.leaky_relu(x, a),
    "ELU": lambda x, a, b: F.elu(x, a),
    "SELU": lambda x, a, b: b * torch.where(x > 0, x, a * x.expm1()),
    "SOFTSIGN": lambda x, a, b: F.softsign(x),
    "SOFTPLUS": lambda x, a, b: a * (b * x).exp().log1p(),
    "CLIP": lambda x, a, b: x.clamp(a, b),
    "HARD_SIGMOID": lambda x, a, b: (a * x + b).clamp(0, 1),
    "SCALED_TANH": lambda x, a, b: a * (b * x).tanh(),
    "THRESHOLDED_RELU": lambda x, a, b: torch.where(x > a, x, 0.0),
    "GELU_ERF": lambda x, a, b: F.gelu(x),
    "GELU_TANH": lambda x, a, b: F.gelu(x, approximate="tanh"),
}
_ACTIVATION_DEFAULTS = {"SELU": (_SELU_ALPHA, _SELU_GAMMA)}


def _elementwise(layer: Layer, inputs: Inputs) -> list[Tensor]:
    a, b = present(layer, inputs, 0), present(layer, inputs, 1)
    if a.dim() != b.dim() or a.dtype != b.dtype:
        raise layer.error(
            f"its inputs are {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}; rank and type must match"
        )
    result = _BINARY[layer.choice("op")](wide(a), wide(b))
    return [result if result.dtype == torch.bool else result.to(a.dtype)]


def _unary(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x = present(layer, inputs, 0)
    result = _UNARY[layer.choice("op")](wide(x))
    return [result if result.dtype == torch.bool else result.to(x.dtype)]


def _activation(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x, kind = present(layer, inputs, 0), layer.choice("type")
    alpha, beta = _ACTIVATION_DEFAULTS.get(kind, (0.0, 0.0))
    result = _ACTIVATIONS[kind](wide(x), layer.number("alpha", alpha), layer.number("beta", beta))
    return [result.to(x.dtype)]


def _cast(layer: Layer, inputs: Inputs) -> list[Tensor]:
    return [present(layer, inputs, 0).to(layer.dtype("to_type"))]


def _select(layer: Layer, inputs: Inputs) -> list[Tensor]:
    condition, first, second = (present(layer, inputs, index) for index in range(3))
    if condition.dtype != torch.bool or first.dtype != second.dtype or first.dim() != second.dim():
        raise layer.error("it takes a condition of type BOOL and two inputs of one type and rank")
    return [torch.where(condition, first, second)]


def _identity(layer: Layer, inputs: Inputs) -> list[Tensor]:
    return [present(layer, inputs, 0)]


def _assertion(layer: Layer, inputs: Inputs) -> list[Tensor]:
    if not bool(present(layer, inputs, 0).all()):
        raise layer.error(f"its condition does not hold: {layer.attributes.get('message')}")
    return []


def _constant(layer: Layer, _: Inputs) -> list[Tensor]:
    constant, shape = layer.constant("weights"), layer.integers("shape")
    return [tensor_of_bytes(constant.data, constant.dtype, shape)]


def _fill(layer: Layer, inputs: Inputs) -> list[Tensor]:
    """Only LINSPACE is computed: value = alpha + beta[axis] * index along each axis."""
    operation, dtype = layer.choice("operation"), layer.choice("to_type", "FLOAT")
    if operation != "LINSPACE":
        raise layer.error(f"operation {operation} is not replayed")
    shape = [int(size) for size in inputs[0].tolist()] if inputs and inputs[0] is not None else layer.integers("shape")
    start = inputs[1] if len(inputs) > 1 and inputs[1] is not None else torch.tensor(layer.number("alpha", 0.0))
    step = inputs[2] if len(inputs) > 2 and inputs[2] is not None else torch.tensor([layer.number("beta", 0.0)])
    values = start.double().reshape([1] * len(shape)).expand(shape).clone()
    steps = step.double().reshape(-1)
    if len(steps) != len(shape):
        raise layer.error(f"{len(steps)} steps for a shape of {len(shape)} axes")
    for axis, size in enumerate(shape):
        sizes = [size if other == axis else 1 for other in range(len(shape))]
        values += (torch.arange(size).double() * steps[axis]).reshape(sizes)
    return [values.to(DTYPES[dtype])]


RULES = {
    "add_activation": Rule(("*", "type"), _activation),
    "add_assertion": Rule(("*", "message"), _assertion),
    "add_cast": Rule(("*", "to_type"), _cast),
    "add_constant": Rule(("shape", "weights"), _constant),
    "add_elementwise": Rule(("*", "*", "op"), _elementwise),
    "add_fill": Rule(("shape", "operation", "to_type"), _fill),
    "add_identity": Rule(("*",), _identity),
    "add_select": Rule(("*", "*", "*"), _select),
    "add_unary": Rule(("*", "op"), _unary),
}
