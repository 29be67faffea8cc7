"""dsv3::LatentAppend as TensorRT's cache update: the cache in and the cache out are one buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.plugins.registry import DOMAIN


def _latent_append(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor]) -> Sequence[ITensor]:
    """Rows [B, S, W] into the cache [B, 1, capacity, W], from row start[b] of slot b on."""
    cache, kv_c, k_pe, start = inputs
    rows = emitter.concat([kv_c, k_pe], 2)
    update = emitter.cast(emitter.unsqueeze(rows, [1]), cache.dtype)
    places = emitter.cast(start, emitter.trt.DataType.INT32)
    mode = emitter.trt.KVCacheMode.LINEAR
    return [emitter.result(emitter.network.add_kv_cache_update(cache, update, places, mode), "append")]


ROWS: Mapping[Key, Row] = {(DOMAIN, "LatentAppend"): Row(_latent_append)}
