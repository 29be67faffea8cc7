"""Launches compiled kernels through CUDA's driver, with exactly the arguments that a TensorRT plugin passes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor

from dsv3export.errors import BackendError
from dsv3export.plugins.kernels.cache import compiled
from dsv3export.plugins.kernels.compiler import Compiled
from dsv3export.plugins.kernels.plugin import Launch
from dsv3export.plugins.kernels.sizes import known

# More has to be asked for, kernel by kernel.
_SHARED_FOR_THE_ASKING = 48 * 1024


def load_driver() -> Any:
    """The module ``cuda.bindings.driver``.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return import_module("cuda.bindings.driver")
    except ImportError as error:
        raise BackendError(
            "CUDA's driver", expected="the package cuda-bindings", got=str(error), fix="pip install cuda-bindings"
        ) from error


class Device:
    """One GPU.

    Args:
        ordinal: Its number in CUDA's order.
        driver: The module ``cuda.bindings.driver``, or what behaves like it.

    Raises:
        BackendError: There is no driver, or no such device.
    """

    def __init__(self, ordinal: int = 0, driver: Any = None) -> None:
        self._driver = load_driver() if driver is None else driver
        self._functions: dict[tuple[str, str], Any] = {}
        self._do("cuInit", 0)
        self._device = self._do("cuDeviceGet", ordinal)
        self._do("cuCtxSetCurrent", self._do("cuDevicePrimaryCtxRetain", self._device))
        kind = self._driver.CUdevice_attribute
        major = self._do("cuDeviceGetAttribute", kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self._do("cuDeviceGetAttribute", kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        self.capability = 10 * int(major) + int(minor)

    def launch(
        self,
        kernel: Compiled,
        grid: tuple[int, int, int],
        inputs: Sequence[int],
        integers: Sequence[int],
        outputs: Sequence[int],
        stream: int = 0,
    ) -> None:
        """Starts a kernel; inputs and outputs are addresses on the device.

        Raises:
            BackendError: The driver refuses the PTX or the launch.
        """
        values = (*inputs, *integers, *outputs)
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        types = (*(pointer for _ in inputs), *(number for _ in integers), *(pointer for _ in outputs))
        function = self._function(kernel)
        self._do("cuLaunchKernel", function, *grid, kernel.threads, 1, 1, kernel.shared, stream, (values, types), 0)

    def run(self, launch: Launch, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """A launch on CPU tensors: copied to the device, and outputs copied back. Outputs may be inputs."""
        kernel = compiled(launch.build, self.capability)
        places: dict[int, int] = {}
        try:
            for tensor in (*inputs, *outputs):
                if tensor.data_ptr() not in places:
                    places[tensor.data_ptr()] = self._copied(tensor)
            grid = (known(launch.grid[0]), known(launch.grid[1]), known(launch.grid[2]))
            self.launch(
                kernel,
                grid,
                [places[tensor.data_ptr()] for tensor in inputs],
                [known(size) for size in launch.integers],
                [places[tensor.data_ptr()] for tensor in outputs],
            )
            for tensor in outputs:
                self._do("cuMemcpyDtoH", tensor.data_ptr(), places[tensor.data_ptr()], tensor.nbytes)
        finally:
            for place in places.values():
                self._do("cuMemFree", place)

    def _copied(self, tensor: Tensor) -> int:
        place = int(self._do("cuMemAlloc", max(tensor.nbytes, 1)))
        if tensor.nbytes:
            self._do("cuMemcpyHtoD", place, tensor.data_ptr(), tensor.nbytes)
        return place

    def _function(self, kernel: Compiled) -> Any:
        key = (kernel.name, kernel.ptx)
        if key not in self._functions:
            module = self._do("cuModuleLoadData", kernel.ptx.encode() + b"\0")
            function = self._do("cuModuleGetFunction", module, kernel.name.encode())
            if kernel.shared > _SHARED_FOR_THE_ASKING:
                kind = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._do("cuFuncSetAttribute", function, kind, kernel.shared)
            self._functions[key] = function
        return self._functions[key]

    def _do(self, name: str, *arguments: Any) -> Any:
        """Calls the driver and gives what it returns beside the status."""
        try:
            status, *results = getattr(self._driver, name)(*arguments)
        except RuntimeError as error:  # cuda-bindings could not load libcuda
            raise BackendError("CUDA's driver", expected="a GPU and its driver", got=str(error)) from error
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise BackendError("CUDA's driver", expected=f"{name} to succeed", got=str(status))
        return results[0] if results else None
