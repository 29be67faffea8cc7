"""Launches on CUDA tensors where they lie, through Triton's own launcher: for programs that run on torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsv3export.plugins.kernels.compiler import triton_function
from dsv3export.plugins.kernels.plugin import Launch
from dsv3export.plugins.kernels.sizes import known


def run_native(launch: Launch, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Queues a launch on torch's current stream, which may be one that is captured; outputs are written in place.

    A kernel is compiled when it is first launched with its constants: launch it once before a capture.
    """
    build = launch.build
    values: list[Tensor | int] = [*inputs, *(known(size) for size in launch.integers), *outputs]
    passed = {
        name: value.view(torch.uint8) if isinstance(value, Tensor) and type_ == "*u8" else value
        for (name, type_), value in zip(build.arguments, values, strict=True)
    }
    grid = tuple(known(size) for size in launch.grid)
    with torch.cuda.device(inputs[0].device):
        triton_function(build)[grid](**passed, **dict(build.constants), num_warps=build.warps, num_stages=build.stages)


def capability(device: torch.device) -> int:
    """The compute capability of a CUDA device, e.g. 90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
