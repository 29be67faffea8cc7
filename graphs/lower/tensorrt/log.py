"""What TensorRT says while it builds."""

from __future__ import annotations

from typing import Any

from dsv3export.graphs.lower.tensorrt.objects import Module

# Said on a machine without a GPU, where nothing needs one.
_HARMLESS = ("Cuda Runtime", "CUDA initialization failure", "CUDA driver version")


def make_logger(trt: Module) -> Any:
    """A logger that prints nothing and keeps errors, in order, as `errors`."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR and not any(text in message for text in _HARMLESS):
                self.errors.append(" ".join(message.split()))

    return Log()
