"""The CUDA driver's calls by way of cuda-bindings, every result checked and every failure in one line."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

from dsv3export.errors import BackendError, ResourceError

_PACKAGE = "cuda.bindings.driver"
# After these the device, or this process's context on it, computes nothing any more.
_LOST = frozenset(
    {
        "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_HARDWARE_STACK_ERROR", "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC",
        "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA_ERROR_CONTEXT_IS_DESTROYED", "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "CUDA_ERROR_MPS_CLIENT_TERMINATED", "CUDA_ERROR_CONTAINED", "CUDA_ERROR_UNKNOWN",
    }
)  # fmt: skip
_NO_DRIVER = frozenset({"CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_STUB_LIBRARY", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"})


class DeviceLostError(BackendError):
    """The device stopped working while it was used."""


class Driver:
    """Calls functions of the driver by name: ``driver("cuMemAlloc", 1024)``.

    Args:
        module: `cuda.bindings.driver`, or what stands for it; None imports it.

    Raises BackendError where the package is missing.
    """

    def __init__(self, module: Any = None) -> None:
        self.module = _load() if module is None else module

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The function's only result, or a tuple of several; None where it has none.

        Raises:
            ResourceError: The memory cannot be had.
            DeviceLostError: The device, or the context on it, is gone.
            BackendError: There is no driver or no device, or the call failed for another reason.
        """
        try:
            status, *results = getattr(self.module, name)(*arguments)
        except (RuntimeError, OSError) as error:  # the driver's library is looked up at the first call
            raise no_driver(str(error)) from error
        if status != self.module.CUresult.CUDA_SUCCESS:
            raise _failure(name, status.name)
        return None if not results else results[0] if len(results) == 1 else tuple(results)

    def release(self, name: str, *arguments: Any) -> None:
        """A call that gives something back: its failure is nobody's concern."""
        with suppress(RuntimeError, OSError):
            getattr(self.module, name)(*arguments)


def no_driver(got: str) -> BackendError:
    """What is said where no NVIDIA GPU can be used."""
    return BackendError(
        "no usable NVIDIA GPU", expected="a driver and a device", got=" ".join(got.split())[:200].rstrip("."),
        fix="Check with nvidia-smi and dsv3export doctor, or build an engine with --backend onnxruntime.",
    )  # fmt: skip


def _load() -> Any:
    try:
        return importlib.import_module(_PACKAGE)
    except ImportError as error:
        raise BackendError(
            "CUDA", expected="the Python package cuda-bindings", got=str(error),
            fix="Install it: pip install 'dsv3export[rtx]' or 'dsv3export[tensorrt]'.",
        ) from error  # fmt: skip


def _failure(name: str, status: str) -> BackendError | ResourceError:
    if status == "CUDA_ERROR_OUT_OF_MEMORY":
        return ResourceError("the GPU's memory is full", got=f"{status} from {name}")
    if status in _LOST:
        return DeviceLostError(
            "the GPU was lost", got=f"{status} from {name}", fix="Load the engine again; see dmesg for the cause."
        )
    if status in _NO_DRIVER:
        return no_driver(status)
    return BackendError(f"CUDA: {name} failed", got=status)
