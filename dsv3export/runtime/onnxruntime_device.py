"""A device that ONNX Runtime computes on: whether it can be had, its memory, and what sessions need to know of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv3export.engine.native_graphs import native_name
from dsv3export.errors import BackendError, ResourceError
from dsv3export.runtime.kernel_choice import choose_kernels
from dsv3export.runtime.onnxruntime_module import ort
from dsv3export.runtime.providers import ENTRIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dsv3export.engine.manifest import Provider
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.kernel_choice import CpuKernels, KernelChoice

_QUIET = 4  # errors come as exceptions, printing them too would say them twice
# Ops that take the time of a step. On a GPU's session, none of them may run on the CPU.
HEAVY = frozenset(
    {
        "FusedMatMul", "MatMul", "MatMulNBits", "MatMulBlockQuantizedFp8Weight", "MoE", "QMoE", "RMSNormalization",
        "RotaryEmbedding", "Softmax", "TensorScatter", "TopK",
    }
)  # fmt: skip


class Device:
    """The first device of a provider; only its presence is tried here.

    Args:
        provider: The provider.
        cpu_kernels: Of the CPU: which kernels its sessions get; of `choose_kernels`.
        invariant: Of native kernels: see `cpu_kernels.register`.

    Raises:
        BackendError: This ONNX Runtime has no such provider, or its libraries, its driver or a device are missing.
    """

    def __init__(self, provider: Provider, cpu_kernels: CpuKernels = "onnxruntime", invariant: bool = False) -> None:
        self.provider, self.cpu_kernels, self.invariant = provider, cpu_kernels, invariant
        self.entry = ENTRIES[provider]
        if self.on_host:
            return
        if self.entry.ort_name not in ort.get_available_providers():
            raise BackendError(
                f"provider {provider}: ONNX Runtime {ort.__version__}",
                expected=f"a build with {self.entry.ort_name}",
                got=", ".join(ort.get_available_providers()),
                fix=f"Install one: {self.entry.install}.",
            )
        _load_libraries()
        try:
            self.allocate((1,), 1)
        except RuntimeError as error:
            raise BackendError(
                f"provider {provider}: no usable device", got=_reason(error), fix=_fix(str(error))
            ) from error

    @property
    def on_host(self) -> bool:
        """Whether it computes in the memory that numpy arrays lie in."""
        return self.entry.memory == "cpu"

    def graph_name(self, graph: str) -> str:
        """The manifest's name of the graph, or of a rank's segment, that runs here."""
        return native_name(graph) if self.cpu_kernels == "native" else graph

    @property
    def session_providers(self) -> list[tuple[str, dict[str, str]]]:
        """For `InferenceSession`. Arithmetic on shapes stays on the CPU, which is therefore always there."""
        own = (self.entry.ort_name, dict(self.entry.options))
        return [own] if self.on_host else [own, (ENTRIES["cpu"].ort_name, {})]

    def allocate(self, shape: Sequence[int], onnx_type: int) -> ort.OrtValue:
        """Memory on the device for a tensor; `onnx_type` is a TensorProto.DataType."""
        return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), onnx_type, self.entry.memory, 0)

    def copy(self, array: NDArray[Any], onnx_type: int) -> ort.OrtValue:
        """A copy on the device; of a type that numpy lacks, the array has its bits as unsigned integers.

        Raises ResourceError where the device's memory does not suffice.
        """
        try:
            value = self.allocate(array.shape, onnx_type)
        except RuntimeError as error:
            raise ResourceError(
                f"provider {self.provider}: not enough memory on the device", got=_reason(error),
                fix="Choose a narrower precision.",
            ) from error  # fmt: skip
        value.update_inplace(np.ascontiguousarray(array))
        return value

    def check_placement(self, session: ort.InferenceSession, where: str) -> None:
        """Raises BackendError if anything that takes time has been given to the CPU instead."""
        if self.on_host:
            return
        for part in session.get_provider_graph_assignment_info():
            misplaced = sorted({node.op_type for node in part.get_nodes()} & HEAVY)
            if part.ep_name != self.entry.ort_name and misplaced:
                raise BackendError(
                    f"{where}: ONNX Runtime {ort.__version__} has no {self.provider} kernel for {misplaced[0]}",
                    fix="Use the version of ONNX Runtime that it was made for, or rebuild it with --provider cpu.",
                )


def open_device(
    files: EngineFiles, provider: Provider = "cpu", asked: KernelChoice = "auto", invariant: bool = False
) -> Device:
    """The device that an engine runs on. Raises BackendError as `Device` and `choose_kernels`."""
    return Device(provider, choose_kernels(files, provider, asked, invariant), invariant)


def problems() -> dict[Provider, str]:
    """Why each provider cannot be used here; empty where it can."""
    return {provider: _problem(provider) for provider in ENTRIES}


def _problem(provider: Provider) -> str:
    try:
        Device(provider)
    except BackendError as error:
        return str(error)
    return ""


def _load_libraries() -> None:
    """CUDA's libraries where pip installed them, which the loader does not search."""
    ort.set_default_logger_severity(_QUIET)
    # It prints what it does not find; the allocation that follows says the same as an exception.
    with redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def _reason(error: Exception) -> str:
    """What ONNX Runtime says of it, without the C++ signatures around."""
    text = " ".join(str(error).split())
    for mark in ("CUDA failure", "Failed to allocate", "CUDA Provider not available"):
        if mark in text:
            return text[text.index(mark) :].split(" ; ")[0][:200]
    return text[-200:]


def _fix(message: str) -> str:
    if "not available" in message:
        return "Install CUDA's libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'; see also: dsv3export doctor."
    return "Check the driver with nvidia-smi, or run on the CPU an engine that was built for it."
