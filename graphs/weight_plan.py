"""Which weights an engine stores, and which it leaves in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.fp8 import check_scale
from dsv3export.checkpoint.model_weights import checkpoint_tensors, is_bank
from dsv3export.engine.plan import PlannedWeight
from dsv3export.errors import InternalError
from dsv3export.graphs.fp8_parts import FP8_PARTS, FP8_SCALES, fp8_sources
from dsv3export.graphs.rewrite import GraphWithWeights, merged_weights
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.weight_expr import WeightExpr

# An engine without a weight of this size to refer to copies all: it should not depend on its checkpoint for the sake of
# a few router biases.
MIN_REFERENCE_BYTES = 1 << 20

_STORED_NAMES: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.UINT8: "U8",
    ir.DataType.INT8: "I8",
    ir.DataType.INT4: "U8",  # two in a byte
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
}


def plan_weights(graphs: Sequence[GraphWithWeights], checkpoint: Checkpoint, copy_weights: bool) -> list[PlannedWeight]:
    """One row per weight of an engine's lowered graphs, in the order of their inputs."""
    values = {str(value.name): value for graph in graphs for value in graph.model.graph.inputs}
    exprs = merged_weights(graphs)
    plan = [_plan(values[name], expr, checkpoint) for name, expr in exprs.items()]
    if copy_weights:
        return plan
    referring = [_referring(weight, exprs[weight.name], checkpoint) for weight in plan]
    if not any(weight.reference and weight.nbytes >= MIN_REFERENCE_BYTES for weight in referring):
        return plan
    return referring


def _plan(value: ir.Value, expr: WeightExpr, checkpoint: Checkpoint) -> PlannedWeight:
    if value.dtype is None:
        raise InternalError(f"weight {value.name} has no dtype")
    sources = tuple(name for leaf in expr.leaves() for name in _sources(leaf, checkpoint))
    shape = tuple(int(dim) for dim in dims_of(value))
    if value.dtype == ir.DataType.INT4:
        shape = (*shape[:-1], -(-shape[-1] // 2))
    dtype = _STORED_NAMES[value.dtype]
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
