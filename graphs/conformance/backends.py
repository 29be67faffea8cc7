"""The backends whose ops can be tried, by name."""

from __future__ import annotations

from dsv3export.errors import BackendError
from dsv3export.graphs.conformance.check import OpBackend
from dsv3export.runtime.cpu_kernels import describe
from dsv3export.runtime.tensorrt_module import FLAVOURS


def open_backends(name: str) -> list[OpBackend]:
    """Opens one, and ONNX Runtime once more with the native CPU kernels, if they were compiled.

    Raises BackendError where its package is missing or it has nothing to try.
    """
    if name == "onnxruntime":
        from dsv3export.graphs.conformance.onnxruntime_ops import OnnxRuntimeOps

        native = describe()
        return [OnnxRuntimeOps(), *([OnnxRuntimeOps(native)] if native else [])]
    if name in FLAVOURS:
        from dsv3export.graphs.conformance.tensorrt_ops import TensorRTOps

        return [TensorRTOps(name)]
    raise BackendError(f"backend {name!r}", expected=f"one of onnxruntime, {', '.join(FLAVOURS)}")
