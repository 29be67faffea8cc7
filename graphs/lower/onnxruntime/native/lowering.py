"""The lowering for the native CPU kernels, beside that for ONNX Runtime's own."""

from __future__ import annotations

from dataclasses import replace

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.onnxruntime.lowering import lower
from dsv3export.graphs.lower.onnxruntime.native.rows import native_row
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.runtime.cpu_kernels import DOMAIN, DOMAIN_VERSION


def lower_native(before: GraphWithWeights, router_dtype: str = "F32") -> GraphWithWeights:
    """As `lower`, for the native kernels; the given graph is used up."""
    return lower(before, native_row, router_dtype, {DOMAIN: DOMAIN_VERSION})


def with_native(lowered: GraphWithWeights, before: GraphWithWeights, router_dtype: str = "F32") -> GraphWithWeights:
    """A lowered graph together with its native twin.

    Args:
        before: What was lowered; used up.

    Raises InternalError where the twin wants a weight that the graph does not have, or has otherwise.
    """
    twin = lower_native(before, router_dtype)
    odd = [name for name, expr in twin.weights.items() if lowered.weights.get(name) != expr]
    if odd:
        raise InternalError(f"the native kernels want a weight of their own: {odd[0]}")
    return replace(lowered, native=twin.model)
