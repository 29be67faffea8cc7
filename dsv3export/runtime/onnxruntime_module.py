"""ONNX Runtime's Python module, or one line that says how to get it. The only module that imports it."""

from __future__ import annotations

from dsv3export.errors import BackendError

try:
    import onnxruntime as ort
except ImportError as error:
    raise BackendError(
        "onnxruntime", expected="the package", got=str(error), fix="Install it: pip install 'dsv3export[cpu]'."
    ) from error

__all__ = ["ort", "reason"]


def reason(error: Exception) -> str:
    """The end of ONNX Runtime's message, in one line: it starts with a C++ signature and ends with the reason."""
    return " ".join(str(error).split())[-300:]
