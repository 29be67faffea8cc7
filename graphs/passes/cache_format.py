"""The pass that keeps the latent cache in fewer bits; the weights stay as they are.

Given -> Result, for bf16 and f16::

    updated = dsv3::LatentAppend(cache: f32[B, T, W], kv_c, k_pe, start)
    a = dsv3::MlaAttention(q_nope, q_pe, updated, kv_b, start)

    updated, latent = dsv3::LatentAppendHalf(cache: bf16[B, T, W], kv_c, k_pe, start) {largest=..}
    a = dsv3::MlaAttention(q_nope, q_pe, latent: f32[B, L, W], kv_b, start)

For fp8, whose layers have a second array::

    updated, updated_side, latent =
        dsv3::LatentAppendFp8(cache: f8[B, T, Dc], side: bf16[B, T, Dr + G], kv_c, k_pe, start)

So every op of attention sees float32 rows, and none has to know the format.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from dsv3export.config import ModelConfig
from dsv3export.errors import InternalError
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.values import like
from dsv3export.plugins import DOMAIN
from dsv3export.recipe import CacheFormat
from dsv3export.runtime.latent_cache import CacheLayout

# Of the safetensors dtypes that a layout may have.
_DATA_TYPES = {
    "BF16": ir.DataType.BFLOAT16,
    "F16": ir.DataType.FLOAT16,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
}
_LARGEST = {"bf16": torch.finfo(torch.bfloat16).max, "f16": torch.finfo(torch.float16).max}
# The formal inputs of a layer kind.
_CACHE, _SIDE = "cache", "side"


def narrow_cache(graph: GraphWithWeights, format: CacheFormat, config: ModelConfig) -> GraphWithWeights:
    """Give the caches of a graph, that of `quantise`, another format; the given one is used up."""
    if format == "fp32":
        return graph
    layout = CacheLayout.of(format, config)
    model = graph.model
    for function in model.functions.values():
        for append in [node for node in function if (node.domain, node.op_type) == (DOMAIN, "LatentAppend")]:
            _narrow_append(function, append, format, layout)
    for call in list(model.graph):
        _narrow_call(model, call, layout)
    return graph


def _narrow_append(function: ir.Function, append: ir.Node, format: CacheFormat, layout: CacheLayout) -> None:
    """Put the format's own append in the place of a kind's; attention then reads what that hands out."""
    cache, *new_rows = (_given(value) for value in append.inputs)
    old = append.outputs[0]
    readers = [(user, index) for user, index in old.uses()]
    latent = like(old, f"{old.name}.latent")
    latent.shape = ir.Shape([*dims_of(old)[:1], "L", *dims_of(old)[2:]])
    for value in (cache, old):
        _resize(value, _DATA_TYPES[layout.dtype], layout.width)
    updated = [like(old)]
    if layout.side_width:
        side = _beside(cache, _SIDE, layout)
        function.inputs.insert(list(function.inputs).index(cache) + 1, side)
        updated.append(_beside(old, f"{old.name}.side", layout))
        new = ir.node("LatentAppendFp8", [cache, side, *new_rows], domain=DOMAIN, outputs=[*updated, latent])
    else:
        largest = {"largest": _LARGEST[format]}
        new = ir.node("LatentAppendHalf", [cache, *new_rows], largest, domain=DOMAIN, outputs=[*updated, latent])
    new.name = append.name
    new.metadata_props.update(append.metadata_props)
    ir.convenience.replace_nodes_and_values(function, append, [append], [new], [old], updated[:1])
    for user, index in readers:
        user.replace_input_with(index, latent)
    function.outputs.extend(updated[1:])


def _narrow_call(model: ir.Model, call: ir.Node, layout: CacheLayout) -> None:
    """The cache of a layer in the main graph, and that beside it."""
    function = model.functions[(call.domain, call.op_type, "")]
    formals = [str(value.name) for value in function.inputs]
    if _CACHE not in formals:
        return
    arguments = [_given(value) for value in call.inputs]
    cache = arguments[formals.index(_CACHE)]
    updated = next(value for value in call.outputs if value.name == f"{cache.name}.updated")
    for value in (cache, updated):
        _resize(value, _DATA_TYPES[layout.dtype], layout.width)
    if not layout.side_width:
        return
    side = _beside(cache, f"{cache.name}.{_SIDE}", layout)
    model.graph.inputs.insert(list(model.graph.inputs).index(cache) + 1, side)
    arguments.insert(formals.index(_SIDE), side)
    outputs = [*map(like, call.outputs), _beside(updated, f"{side.name}.updated", layout)]
    new = ir.node(call.op_type, arguments, domain=call.domain, outputs=outputs, name=call.name)
    new.metadata_props.update(call.metadata_props)
    ir.convenience.replace_nodes_and_values(model.graph, call, [call], [new], call.outputs, outputs[:-1])
    model.graph.outputs.append(outputs[-1])


def _beside(value: ir.Value, name: str, layout: CacheLayout) -> ir.Value:
    """The value of the side numbers that goes with one of a cache."""
    side = like(value, name)
    _resize(side, ir.DataType.BFLOAT16, layout.side_width)
    return side


def _resize(value: ir.Value, dtype: ir.DataType, width: int) -> None:
    value.dtype = dtype
    value.shape = ir.Shape([*dims_of(value)[:-1], width])


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise InternalError("a node of the graph lacks an input")
    return value
