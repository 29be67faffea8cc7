"""Layers that move elements and compute nothing: shuffle, slice, concatenation, shape, squeeze."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.replay_layers.layer import Inputs, Layer, Rule, optional, present


def _shuffle(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x = present(layer, inputs, 0)
    x = x.permute(_permutation(layer, "first_transpose", x.dim()))
    dynamic = optional(inputs, 1)
    if dynamic is not None or "reshape_dims" in layer.attributes:
        target = dynamic.tolist() if dynamic is not None else layer.integers("reshape_dims")
        x = x.reshape(_sizes(layer, x, target))
    return [x.permute(_permutation(layer, "second_transpose", x.dim()))]


def _permutation(layer: Layer, name: str, rank: int) -> tuple[int, ...]:
    """TensorRT's `Permutation` always has eight entries, of which the first `rank` count."""
    order = layer.integers(name, tuple(range(rank)))[:rank]
    if sorted(order) != list(range(rank)):
        raise layer.error(f"{name} is {order}, not a permutation of {rank} axes")
    return order


def _sizes(layer: Layer, x: Tensor, target: Sequence[int]) -> list[int]:
    if not layer.flag("zero_is_placeholder", True):
        return list(target)
    if any(size == 0 and axis >= x.dim() for axis, size in enumerate(target)):
        raise layer.error(f"reshape to {list(target)} copies an axis that {list(x.shape)} lacks")
    return [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]


def _slice(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x = present(layer, inputs, 0)
    start, size, stride = (
        _shape_input(layer, inputs, index, name) for index, name in enumerate(("start", "shape", "stride"), start=1)
    )
    axes = _slice_axes(layer, inputs, x.dim())
    if not len(start) == len(size) == len(stride) == len(axes):
        raise layer.error(f"start {start}, shape {size}, stride {stride} for axes {list(axes)}")
    mode = layer.choice("mode", "STRICT_BOUNDS")
    fill = optional(inputs, 4)
    for axis, first, count, step in zip(axes, start, size, stride, strict=True):
        wanted = first + step * torch.arange(count)
        length = x.shape[axis]
        inside = (wanted >= 0) & (wanted < length)
        x = x.index_select(axis, _source(layer, mode, wanted, length, bool(inside.all())))
        if mode == "FILL" and not inside.all():
            keep = inside.reshape([-1 if other == axis else 1 for other in range(x.dim())])
            x = torch.where(keep, x, torch.zeros((), dtype=x.dtype) if fill is None else fill.to(x.dtype).reshape(()))
    return [x]


def _slice_axes(layer: Layer, inputs: Inputs, rank: int) -> list[int]:
    dynamic = optional(inputs, 5)
    axes = dynamic.tolist() if dynamic is not None else layer.integers("axes", tuple(range(rank)))
    return [int(axis) % rank for axis in axes]


def _shape_input(layer: Layer, inputs: Inputs, index: int, name: str) -> list[int]:
    dynamic = optional(inputs, index)
    return [int(item) for item in (dynamic.tolist() if dynamic is not None else layer.integers(name))]


def _source(layer: Layer, mode: str, wanted: Tensor, length: int, inside: bool) -> Tensor:
    """Which index of the input each wanted one reads, by the mode's formula for indices out of bounds."""
    if inside:
        return wanted
    if mode == "STRICT_BOUNDS":
        raise layer.error(f"reads indices {wanted.tolist()} of an axis of {length}")
    if mode == "WRAP":
        return wanted % length
    if mode in ("CLAMP", "FILL"):
        return wanted.clamp(0, length - 1)
    period = max(2 * length - 2, 1)
    folded = wanted.abs() % period
    return torch.where(folded >= length, period - folded, folded)


def _concatenation(layer: Layer, inputs: Inputs) -> list[Tensor]:
    tensors = [present(layer, inputs, index) for index in range(len(inputs))]
    if len({tensor.dtype for tensor in tensors}) != 1:
        raise layer.error(f"its inputs have types {[tensor.dtype for tensor in tensors]}")
    return [torch.cat(tensors, dim=layer.integer("axis", max(0, tensors[0].dim() - 3)))]


def _shape(layer: Layer, inputs: Inputs) -> list[Tensor]:
    return [torch.tensor(present(layer, inputs, 0).shape, dtype=torch.int64)]


def _squeeze(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x, axes = present(layer, inputs, 0), present(layer, inputs, 1).tolist()
    if any(x.shape[axis] != 1 for axis in axes):
        raise layer.error(f"axes {axes} of {list(x.shape)} are not all of length 1")
    return [x.squeeze(axes)]


def _unsqueeze(layer: Layer, inputs: Inputs) -> list[Tensor]:
    x, axes = present(layer, inputs, 0), present(layer, inputs, 1).tolist()
    rank = x.dim() + len(axes)
    for axis in sorted(int(axis) % rank for axis in axes):
        x = x.unsqueeze(axis)
    return [x]


RULES = {
    "add_concatenation": Rule(("*",), _concatenation),
    "add_shape": Rule(("*",), _shape),
    "add_shuffle": Rule(("*",), _shuffle),
    "add_slice": Rule(("*", "start", "shape", "stride"), _slice),
    "add_squeeze": Rule(("*", "*"), _squeeze),
    "add_unsqueeze": Rule(("*", "*"), _unsqueeze),
}
