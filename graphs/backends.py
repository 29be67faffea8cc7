"""The backends that engines are built for: a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from dsv3export.errors import BackendError
from dsv3export.graphs.backend import Backend, BackendOptions
from dsv3export.graphs.lower.onnxruntime.backend import OnnxRuntimeBackend
from dsv3export.graphs.lower.tensorrt.backend import TensorRTBackend
from dsv3export.graphs.lower.tensorrt.flavour import FULL, RTX

BACKENDS: Mapping[str, Callable[[BackendOptions], Backend]] = {
    "onnxruntime": OnnxRuntimeBackend,
    "tensorrt-rtx": partial(TensorRTBackend, RTX),
    "tensorrt": partial(TensorRTBackend, FULL),
}


def open_backend(name: str, options: BackendOptions) -> Backend:
    """The backend of that name. Raises BackendError for another, RequestError for options that it does not have."""
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r}", expected=f"one of {', '.join(BACKENDS)}")
    return BACKENDS[name](options)
