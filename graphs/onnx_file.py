"""The intermediate graph as an ONNX file, weights as inputs: to look at, or to run anywhere."""

from __future__ import annotations

import onnx
import onnx.checker
import onnx_ir as ir

from dsv3export.graphs.lower.onnxruntime import lower
from dsv3export.graphs.lower.onnxruntime.ops import generic_row
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.plugins.schemas import register_schemas


def traced_onnx(model: ir.Model) -> bytes:
    """The graph as traced: dsv3 ops with their attributes, known to tools through their schemas."""
    register_schemas()
    return _checked(model)


def portable_onnx(model: ir.Model) -> bytes:
    """The graph with every dsv3 op as a function of standard ONNX ops: any ONNX Runtime runs it.

    The experts' generic function gathers weights per token, which suits short inputs only.
    """
    return _checked(lower(GraphWithWeights.traced(model), generic_row).model)


def _checked(model: ir.Model) -> bytes:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
