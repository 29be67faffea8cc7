"""The standard ONNX ops of the graph, on torch tensors. Semantics: the ONNX operator specification, opset 24."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.onnx.ops
from torch import Tensor

Kernel = Callable[[Sequence[Tensor], Mapping[str, Any]], Tensor | tuple[Tensor, ...]]

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
}


def _constant(_: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    ((name, value),) = attributes.items()
    return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)


def _reshape(inputs: Sequence[Tensor], _: Mapping[str, Any]) -> Tensor:
    x, target = inputs
    sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target.tolist())]
    return x.reshape(sizes)


def _shape(inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    return torch.tensor(inputs[0].shape[attributes["start"] : attributes["end"]])


def _gather(inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    x, index = inputs
    axis = attributes["axis"]
    picked = x.index_select(axis, index.reshape(-1))
    return picked.unflatten(axis, index.shape) if index.dim() != 1 else picked


def _split(inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = inputs[0].split(inputs[1].tolist(), dim=attributes["axis"])
    return parts


def _unsqueeze(inputs: Sequence[Tensor], _: Mapping[str, Any]) -> Tensor:
    (axis,) = inputs[1].tolist()
    return inputs[0].unsqueeze(axis)


def _rms_norm(inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    x, weight = inputs
    return torch.nn.functional.rms_norm(x, weight.shape, weight, attributes["epsilon"])


def _rotary(inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    x, cos, sin = inputs
    flags = {"interleaved": bool(attributes["interleaved"]), "num_heads": attributes["num_heads"]}
    rotated: Tensor = torch.onnx.ops.rotary_embedding(x, cos, sin, **flags)
    return rotated


KERNELS: dict[str, Kernel] = {
    "Add": lambda i, a: i[0] + i[1],
    "Cast": lambda i, a: i[0].to(_DTYPES[ir.DataType(a["to"])]),
    "Concat": lambda i, a: torch.cat(list(i), dim=a["axis"]),
    "Constant": _constant,
    "ConstantOfShape": lambda i, a: torch.zeros(i[0].tolist()),
    "Cos": lambda i, a: i[0].cos(),
    "Gather": _gather,
    "Mul": lambda i, a: i[0] * i[1],
    "RMSNormalization": _rms_norm,
    "Range": lambda i, a: torch.arange(int(i[0]), int(i[1]), int(i[2])),
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Shape": _shape,
    "Sin": lambda i, a: i[0].sin(),
    "Split": _split,
    "Squeeze": lambda i, a: i[0].squeeze(),
    "Swish": lambda i, a: torch.nn.functional.silu(i[0]),
    "Unsqueeze": _unsqueeze,
}
