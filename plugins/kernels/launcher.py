"""Launches compiled kernels through CUDA's driver, with exactly the arguments that a TensorRT plugin passes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3export.plugins.kernels.cache import compiled
from dsv3export.plugins.kernels.compiler import Compiled
from dsv3export.plugins.kernels.plugin import Launch
from dsv3export.plugins.kernels.sizes import known
from dsv3export.runtime.device import Device, PinnedBuffer

# More has to be asked for, kernel by kernel.
_SHARED_FOR_THE_ASKING = 48 * 1024


class Launcher:
    """Runs kernels on a GPU.

    Attributes:
        capability: The device's compute capability, e.g. 90.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._functions: dict[tuple[str, str], Any] = {}
        major, minor = device.compute_capability
        self.capability = 10 * major + minor

    def launch(
        self,
        kernel: Compiled,
        grid: tuple[int, int, int],
        inputs: Sequence[int],
        integers: Sequence[int],
        outputs: Sequence[int],
        stream: int,
    ) -> None:
        """Queues a kernel; inputs and outputs are addresses on the device.

        Raises:
            BackendError: The driver refuses the PTX or the launch.
        """
        values = (*inputs, *integers, *outputs)
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        types = (*(pointer for _ in inputs), *(number for _ in integers), *(pointer for _ in outputs))
        function = self._function(kernel)
        block = (kernel.threads, 1, 1)
        self._device.call("cuLaunchKernel", function, *grid, *block, kernel.shared, stream, (values, types), 0)

    def run(self, launch: Launch, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """A launch on CPU tensors: copied to the device, and outputs copied back. An output may be an input."""
        kernel, stream = compiled(launch.build, self.capability), self._device.stream()
        self._function(kernel)  # what may be refused comes before what is queued
        tensors = {tensor.data_ptr(): tensor for tensor in (*inputs, *outputs)}
        staging = {key: self._staged(tensor) for key, tensor in tensors.items()}
        buffers = {key: self._device.allocate(tensor.nbytes) for key, tensor in tensors.items()}
        for key, buffer in buffers.items():
            stream.copy_in(buffer.address, staging[key], buffer.nbytes)
        self.launch(
            kernel,
            (known(launch.grid[0]), known(launch.grid[1]), known(launch.grid[2])),
            [buffers[tensor.data_ptr()].address for tensor in inputs],
            [known(size) for size in launch.integers],
            [buffers[tensor.data_ptr()].address for tensor in outputs],
            stream.address,
        )
        stream.synchronise()
        for tensor in outputs:
            key = tensor.data_ptr()
            stream.copy_out(staging[key], buffers[key].address, buffers[key].nbytes)
        stream.synchronise()
        for tensor in outputs:
            _bytes(tensor)[:] = staging[tensor.data_ptr()].bytes

    def _staged(self, tensor: Tensor) -> PinnedBuffer:
        buffer = self._device.pinned(tensor.nbytes)
        buffer.bytes[:] = _bytes(tensor)
        return buffer

    def _function(self, kernel: Compiled) -> Any:
        key, call = (kernel.name, kernel.ptx), self._device.call
        if key not in self._functions:
            module = call("cuModuleLoadData", kernel.ptx.encode() + b"\0")
            function = call("cuModuleGetFunction", module, kernel.name.encode())
            if kernel.shared > _SHARED_FOR_THE_ASKING:
                kind = call.module.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                call("cuFuncSetAttribute", function, kind, kernel.shared)
            self._functions[key] = function
        return self._functions[key]


def _bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    array: np.ndarray[Any, np.dtype[np.uint8]] = tensor.flatten().view(torch.uint8).numpy()
    return array
