"""What TensorRT says while it builds."""

from __future__ import annotations

from typing import Any

from dsv3export.graphs.lower.tensorrt.objects import Module
from dsv3export.runtime.tensorrt.log import make_log

# Said on a machine without a GPU, where nothing needs one.
_HARMLESS = ("Cuda Runtime", "CUDA initialization failure", "CUDA driver version")


def make_logger(trt: Module) -> Any:
    """A logger that prints nothing and keeps errors, in order, as `errors`."""
    return make_log(trt, _HARMLESS)
