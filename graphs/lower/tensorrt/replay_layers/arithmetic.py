"""Layers that sum: matrix products, reductions, softmax, cumulative sums, normalisation, einsum.

16-bit floats are multiplied and summed in float32 and rounded once, at the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.replay_layers.layer import Inputs, Layer, Rule, present, wide


def _matrix_multiply(layer: Layer, inputs: Inputs) -> list[Tensor]:
    a, b = present(layer, inputs, 0), present(layer, inputs, 1)
    if a.dtype != b.dtype or not a.is_floating_point():
        raise layer.error(f"its inputs are {a.dtype} and {b.dtype}; both must be of one float type")
    left, right = layer.choice("op0"), layer.choice("op1")
    vectors = (left == "VECTOR", right == "VECTOR")
    x = wide(a).unsqueeze(-2) if vectors[0] else wide(a)
    y = wide(b).unsqueeze(-1) if vectors[1] else wide(b)
    if x.dim() != y.dim():
        raise layer.error(f"its inputs have shapes {list(a.shape)} and {list(b.shape)}; TensorRT adds no axes")
    product = (x.mT if left == "TRANSPOSE" else x) @ (y.mT if right == "TRANSPOSE" else y)
    product = product.squeeze(-1) if vectors[1] else product
    product = product.squeeze(-1 if vectors[1] else -2) if vectors[0] else product
    return [product.to(a.dtype)]


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "SUM": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "AVG": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "MAX": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "MIN": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "PROD": lambda x, axes, keep: reduce(lambda y, axis: y.prod(axis, keepdim=keep), reversed(axes), x),
}


def _reduce(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x = present(layer, inputs, 0)
    axes = layer.axes_of_mask("axes", x.dim())
    return [_REDUCTIONS[layer.choice("op")](wide(x), axes, layer.flag("keep_dims", False)).to(x.dtype)]


def _softmax(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x = present(layer, inputs, 0)
    axis = layer.axis_of_mask("axes", x.dim(), 1 << max(0, x.dim() - 3))
    return [wide(x).softmax(axis).to(x.dtype)]


def _cumulative(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x, axis = present(layer, inputs, 0), int(present(layer, inputs, 1).item())
    reverse = layer.flag("reverse", False)
    y = wide(x).flip(axis) if reverse else wide(x)
    sums = y.cumsum(axis) - y if layer.flag("exclusive", False) else y.cumsum(axis)
    return [(sums.flip(axis) if reverse else sums).to(x.dtype)]


def _normalization(layer: Layer, inputs: Inputs) -> list[Tensor]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias; it is no RMS norm."""
    x, scale, bias = (present(layer, inputs, index) for index in range(3))
    if layer.integer("num_groups", 1) != 1:
        raise layer.error("groups are not replayed")
    axes = layer.axes_of_mask("axes", x.dim())
    centred = wide(x) - wide(x).mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    normal = centred / (variance + layer.number("epsilon", 1e-5)).sqrt()
    return [(normal * wide(scale) + wide(bias)).to(x.dtype)]


def _einsum(layer: Layer, inputs: Inputs) -> list[Tensor]:
    tensors = [present(layer, inputs, index) for index in range(len(inputs))]
    return [torch.einsum(layer.choice("equation"), *map(wide, tensors)).to(tensors[0].dtype)]


RULES = {
    "add_cumulative": Rule(("*", "*", "op", "exclusive", "reverse"), _cumulative),
    "add_einsum": Rule(("*", "equation"), _einsum),
    "add_matrix_multiply": Rule(("*", "op0", "*", "op1"), _matrix_multiply),
    "add_normalization": Rule(("*", "*", "*", "axes"), _normalization),
    "add_normalization_v2": Rule(("*", "*", "*", "axes"), _normalization),
    "add_reduce": Rule(("*", "op", "axes", "keep_dims"), _reduce),
    "add_softmax": Rule(("*",), _softmax),
}
