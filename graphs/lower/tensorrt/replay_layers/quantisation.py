"""Quantise and dequantise: one scale for the tensor, for each index of an axis, or for each block."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.replay_layers.layer import DTYPES, Inputs, Layer, Rule, present, wide

_RANGES = {"INT8": (-128, 127), "INT4": (-8, 7)}
_LARGEST_FP8 = 448.0


def _dequantize(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x, scale = present(layer, inputs, 0), present(layer, inputs, 1)
    wide_scale = _per_element(layer, scale.float(), x.shape)
    return [(x.float() * wide_scale).to(layer.dtype("to_type", "FLOAT"))]


def _quantize(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x, scale = present(layer, inputs, 0), present(layer, inputs, 1)
    kind = layer.choice("to_type", "INT8")
    quotient = wide(x) / _per_element(layer, scale.float(), x.shape)
    if kind == "FP8":
        return [quotient.clamp(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn)]
    low, high = _RANGES[kind]
    return [quotient.round().clamp(low, high).to(DTYPES[kind])]


def _per_element(layer: Layer, scale: Tensor, shape: torch.Size) -> Tensor:
    """The scale of each element of a tensor of this shape; blocks at an edge may be cut short."""
    if prod(scale.shape) == 1:
        return scale.reshape([1] * len(shape))
    if scale.dim() == len(shape) and (scale.dim() > 1 or "block_shape" in layer.attributes):
        return _per_block(layer, scale, shape)
    axis = layer.integer("axis", -1)
    if scale.dim() != 1 or not 0 <= axis < len(shape) or scale.shape[0] != shape[axis]:
        raise layer.error(f"a scale {list(scale.shape)} on axis {axis} of {list(shape)}")
    return scale.reshape([-1 if other == axis else 1 for other in range(len(shape))])


def _per_block(layer: Layer, scale: Tensor, shape: torch.Size) -> Tensor:
    """Without `block_shape` a block's sizes are those of the tensor divided by those of the scale."""
    inferred = tuple(-(-size // parts) for size, parts in zip(shape, scale.shape, strict=True))
    blocks = layer.integers("block_shape", inferred)
    for axis, (size, stated) in enumerate(zip(shape, blocks, strict=True)):
        block = size if stated == -1 else stated
        if scale.shape[axis] != -(-size // block):
            raise layer.error(f"a scale {list(scale.shape)} for blocks {blocks} of {list(shape)}")
        scale = scale.repeat_interleave(block, axis).narrow(axis, 0, size)
    return scale


RULES = {
    "add_dequantize": Rule(("*", "*", "to_type"), _dequantize),
    "add_quantize": Rule(("*", "*", "to_type"), _quantize),
}
