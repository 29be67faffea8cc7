"""ONNX Runtime: layer kinds stay functions, dsv3 ops become functions in ONNX Runtime's own ops, weights are packed."""

from dsv3export.graphs.lower.onnxruntime.lowering import lower
from dsv3export.graphs.lower.onnxruntime.serialize import serialize

__all__ = ["lower", "serialize"]
