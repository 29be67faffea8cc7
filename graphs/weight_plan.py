"""Which weights an engine stores, which it leaves in the checkpoint, and how the stored ones are made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.fp8 import check_scale
from dsv3export.checkpoint.model_weights import checkpoint_tensors, is_bank, load_float32
from dsv3export.engine.plan import PlannedWeight
from dsv3export.errors import InternalError
from dsv3export.graphs.calibration import Calibration, one_thread
from dsv3export.graphs.fp8_parts import FP8_PARTS, FP8_SCALES, fp8_parts, fp8_sources
from dsv3export.graphs.packing import FLOAT_TYPES, PACKINGS
from dsv3export.graphs.quantise_weight import INT_PARTS, quantise_weight
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.weight_expr import WeightExpr

# An engine without a weight of this size to refer to copies all: it should not depend on its checkpoint for the sake of
# a few router biases.
MIN_REFERENCE_BYTES = 1 << 20
# Gate and up of a bank are interleaved: both stay until numbers, scales and zero points have been written.
_KEPT_WEIGHTS = 2

_STORED_NAMES: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.UINT8: "U8",
    ir.DataType.INT8: "I8",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
}


def plan_weights(graph: GraphWithWeights, checkpoint: Checkpoint, copy_weights: bool) -> list[PlannedWeight]:
    """One row per weight of a lowered graph, in the order of its inputs."""
    values = {str(value.name): value for value in graph.model.graph.inputs}
    plan = [_plan(values[name], expr, checkpoint) for name, expr in graph.weights.items()]
    if copy_weights:
        return plan
    referring = [_referring(weight, graph.weights[weight.name], checkpoint) for weight in plan]
    if not any(weight.reference and weight.nbytes >= MIN_REFERENCE_BYTES for weight in referring):
        return plan
    return referring


def _plan(value: ir.Value, expr: WeightExpr, checkpoint: Checkpoint) -> PlannedWeight:
    if value.dtype is None:
        raise InternalError(f"weight {value.name} has no dtype")
    sources = tuple(name for leaf in expr.leaves() for name in _sources(leaf, checkpoint))
    dtype, shape = _STORED_NAMES[value.dtype], tuple(int(dim) for dim in dims_of(value))
    return PlannedWeight(str(value.name), dtype, shape, sources, expr.describe())


def _referring(weight: PlannedWeight, expr: WeightExpr, checkpoint: Checkpoint) -> PlannedWeight:
    """The weight as a reference, if the checkpoint's tensors, one after the other, are what the graph wants."""
    if expr.inputs or not weight.sources:
        return weight
    tensors = tuple(checkpoint.tensors[source] for source in weight.sources)
    shape = weight.shape[1:] if is_bank(expr.name) else weight.shape
    if any((tensor.dtype, tensor.shape) != (weight.dtype, shape) for tensor in tensors):
        return weight
    if expr.packing == FP8_SCALES:
        for tensor in tensors:
            check_scale(tensor, checkpoint.array(tensor.name))
    return replace(weight, transform="as_stored", reference=tensors)


def _sources(leaf: WeightExpr, checkpoint: Checkpoint) -> tuple[str, ...]:
    if leaf.packing in FP8_PARTS:
        return fp8_sources(leaf.name, leaf.packing, checkpoint)
    return checkpoint_tensors(leaf.name, checkpoint.config)


class Packer:
    """Makes the arrays that weight expressions stand for.

    Numbers, scales and zero points of an integer weight are planned as neighbours: the latest quantised weights are
    kept, so that each is quantised once.

    Args:
        calibration: Of the same checkpoint; needed for weights that are quantised by gptq. It runs along: weights are
            best asked for in the order of the graph.
    """

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration | None = None) -> None:
        self._checkpoint = checkpoint
        self._calibration = calibration
        self._quantised: OrderedDict[tuple[WeightExpr, ...], dict[str, NDArray[Any]]] = OrderedDict()

    def pack(self, expr: WeightExpr) -> NDArray[Any]:
        """The array of an expression."""
        if expr.packing in INT_PARTS:
            return self._int_parts(expr)[expr.packing]
        if expr.packing in FP8_PARTS:
            return fp8_parts(expr.name, self._checkpoint)[expr.packing]
        if expr.inputs:
            return PACKINGS[expr.packing]([self.pack(each) for each in expr.inputs], dict(expr.params))
        return load_float32(expr.name, self._checkpoint).astype(FLOAT_TYPES[expr.packing], copy=False)

    def _int_parts(self, expr: WeightExpr) -> dict[str, NDArray[Any]]:
        if expr.inputs not in self._quantised:
            (weight,) = expr.inputs
            self._quantised[expr.inputs] = self._quantise(weight, dict(expr.params))
            while len(self._quantised) > _KEPT_WEIGHTS:
                self._quantised.popitem(last=False)
        return self._quantised[expr.inputs]

    def _quantise(self, weight: WeightExpr, params: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        if params["method"] != "gptq" or self._calibration is None:
            return quantise_weight(self.pack(weight), params, weight.name)
        with one_thread():
            # Before the weight is loaded: this runs whole layers.
            hessian_of = self._calibration.hessian_of(weight.name)
            return quantise_weight(self.pack(weight), params, weight.name, hessian_of)
