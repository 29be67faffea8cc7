"""Which weights an engine stores, and which it leaves in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.fp8 import check_scale
from dsv3export.checkpoint.model_weights import checkpoint_tensors, is_bank
from dsv3export.engine.plan import PlannedWeight, Region
from dsv3export.errors import InternalError
from dsv3export.graphs.fp8_parts import FP8_PARTS, FP8_SCALES, fp8_sources
from dsv3export.graphs.rewrite import GraphWithWeights, merged_weights
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.weight_expr import SLICE, WeightExpr

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


def plan_weights(
    graphs: Sequence[GraphWithWeights], checkpoint: Checkpoint, copy_weights: bool, checked: set[str] | None = None
) -> list[PlannedWeight]:
    """One row per weight of an engine's lowered graphs, in the order of their inputs.

    Args:
        checked: FP8 scales that were found to be usable already; others are added.
    """
    checked = set() if checked is None else checked
    values = {str(value.name): value for graph in graphs for value in graph.model.graph.inputs}
    exprs = merged_weights(graphs)
    plan = [_plan(values[name], expr, checkpoint) for name, expr in exprs.items()]
    if copy_weights:
        return plan
    referring = [_referring(weight, exprs[weight.name], checkpoint, checked) for weight in plan]
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


def _referring(
    weight: PlannedWeight, expr: WeightExpr, checkpoint: Checkpoint, checked: set[str]
) -> PlannedWeight:  # fmt: skip
    """The weight as a reference, if the checkpoint's tensors, or the same part of each, are what the graph wants."""
    cuts: dict[int, tuple[int, int]] = {}
    while expr.packing == SLICE:
        params = dict(expr.params)
        cuts[int(params["axis"])] = int(params["begin"]), int(params["end"])
        (expr,) = expr.inputs
    if expr.inputs or not weight.sources:
        return weight
    sources, shape = weight.sources, weight.shape
    if is_bank(expr.name):
        begin, end = cuts.pop(0, (0, len(sources)))
        sources, shape = sources[begin:end], shape[1:]
        cuts = {axis - 1: cut for axis, cut in cuts.items()}
    tensors = tuple(checkpoint.tensors[source] for source in sources)
    region = Region(cuts.get(0), cuts.get(1))
    if any((tensor.dtype, region.shape(tensor.shape)) != (weight.dtype, shape) for tensor in tensors):
        return weight
    if expr.packing == FP8_SCALES:
        for tensor in tensors:
            if tensor.name not in checked:
                check_scale(tensor, checkpoint.array(tensor.name))
                checked.add(tensor.name)
    return replace(
        weight, sources=sources, transform="part" if cuts else "as_stored", reference=tensors,
        region=region if cuts else None,
    )  # fmt: skip


def _sources(leaf: WeightExpr, checkpoint: Checkpoint) -> tuple[str, ...]:
    if leaf.packing in FP8_PARTS:
        return fp8_sources(leaf.name, leaf.packing, checkpoint)
    return checkpoint_tensors(leaf.name, checkpoint.config)
