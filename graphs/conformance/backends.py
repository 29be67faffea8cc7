"""The backends whose ops can be tried, by name."""

from __future__ import annotations

from dsv3export.errors import BackendError
from dsv3export.graphs.conformance.check import OpBackend
from dsv3export.runtime.tensorrt_module import FLAVOURS


def open_backend(name: str) -> OpBackend:
    """Opens one. Raises BackendError where its package is missing or it has nothing to try."""
    if name == "onnxruntime":
        from dsv3export.graphs.conformance.onnxruntime_ops import OnnxRuntimeOps

        return OnnxRuntimeOps()
    if name in FLAVOURS:
        from dsv3export.graphs.conformance.tensorrt_ops import TensorRTOps

        return TensorRTOps(name)
    raise BackendError(f"backend {name!r}", expected=f"one of onnxruntime, {', '.join(FLAVOURS)}")
