"""dsv3::MlaAttention and its FP8 and integer forms as TensorRT layers.

The phase says which form: a decode step attends over the latent itself, W^UK absorbed into the query and W^UV into the
output (DeepSeek-V2 paper, section 2.1.2); a prefill projects K and V up once and attends per head by TensorRT's fused
attention, whose Q, K and V have one width: they are filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import onnx_ir as ir

from dsv3export.graphs.lower.packed import node_dims
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.layers import Size
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows.values import fp8_blocks
from dsv3export.plugins.registry import DOMAIN, Dims

Inputs = Sequence[ITensor]

# TensorRT-RTX's attention takes heads of any width, but fails on 16-bit ones of a width that 8 does not divide.
_WIDTHS = 8
# Rows of the cache that are read at once.
_BLOCK = 64


@dataclass(frozen=True)
class Attention:
    """What both forms take.

    Attributes:
        q_nope, q_pe: [B, S, H, Dn] and [B, S, H, Dr], rotated, in the type of activations.
        latent: [B, L, Dc+Dr], the cache up to the longest slot's length or further, in the type of activations.
        start: int64 [B].
        w_uk, w_uv: [H, Dn, Dc] and [H, Dc, Dv], in the type of activations.
        scale: Of the products, YaRN's mscale squared folded in.
    """

    q_nope: ITensor
    q_pe: ITensor
    latent: ITensor
    start: ITensor
    w_uk: ITensor
    w_uv: ITensor
    scale: float
    dims: Dims


def mla_attention(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    q_nope, q_pe, cache, *weights, start = inputs
    return _attend(emitter, node, (q_nope, q_pe, cache, start), *up_projections(emitter, node, weights))


def up_projections(emitter: Emitter, node: ir.Node, weights: Inputs) -> tuple[ITensor, ITensor]:
    """W^UK [H, Dn, Dc] and W^UV [H, Dc, Dv] in the type of activations, of an attention's weights in any form."""
    if node.op_type == "MlaAttentionInt":
        pairs = zip(weights[::2], weights[1::2], strict=True)
        w_uk, w_uv = (
            emitter.cast(emitter.mul(emitter.cast(numbers, emitter.float32), scale), emitter.compute)
            for numbers, scale in pairs
        )
        return w_uk, w_uv
    (kv_b,) = weights if len(weights) == 1 else [fp8_blocks(emitter, *weights)]
    return _parts(emitter, node, kv_b)


def _parts(emitter: Emitter, node: ir.Node, kv_b: ITensor) -> tuple[ITensor, ITensor]:
    """W^UK and W^UV of kv_b_proj's weight [H*(Dn+Dv), Dc]."""
    dims = node_dims(node)
    heads, nope, value, latent = (dims[name] for name in ("H", "Dn", "Dv", "Dc"))
    per_head = emitter.reshape(emitter.cast(kv_b, emitter.compute), [heads, nope + value, latent])
    w_uk = emitter.slice(per_head, [0, 0, 0], [heads, nope, latent])
    w_uv = emitter.slice(per_head, [0, nope, 0], [heads, value, latent])
    return w_uk, emitter.transpose(w_uv, [0, 2, 1])


def _attend(
    emitter: Emitter, node: ir.Node, inputs: tuple[ITensor, ITensor, ITensor, ITensor], w_uk: ITensor, w_uv: ITensor
) -> Sequence[ITensor]:
    q_nope, q_pe, cache, start = inputs
    latent = emitter.cast(_seen(emitter, cache), emitter.compute)
    scale = float(node.attributes["scale"].value)
    attention = Attention(q_nope, q_pe, latent, start, w_uk, w_uv, scale, node_dims(node))
    return [(_absorbed if emitter.phase == "decode" else _decompressed)(emitter, attention)]


def _seen(emitter: Emitter, cache: ITensor) -> ITensor:
    """The cache's rows up to the longest slot's length, in whole blocks: [B, L, Dc+Dr] of [B, 1, capacity, Dc+Dr].

    Of a length that 8 divides TensorRT's products take the rows as they are; of any other one they are copied first.
    """
    slots, _, capacity, width = (emitter.dim(cache, axis) for axis in range(4))
    block = gcd(capacity, _BLOCK)
    rest = emitter.constant([block - 1])
    blocks = emitter.div(emitter.add(emitter.length, rest), emitter.constant([block]))
    in_blocks = emitter.reshape(cache, [slots, capacity // block, block, width])
    seen = emitter.slice(in_blocks, [0, 0, 0, 0], [slots, blocks, block, width])
    return emitter.reshape(seen, [slots, emitter.mul(blocks, emitter.constant([block])), width])


def _absorbed(emitter: Emitter, a: Attention) -> ITensor:
    """Attention in the latent space, all heads of a slot over the same keys: [B, S, H*Dv]."""
    heads, latent = a.dims["H"], a.dims["Dc"]
    slots, tokens, length = emitter.dim(a.q_nope, 0), emitter.dim(a.q_nope, 1), emitter.dim(a.latent, 1)
    query = emitter.concat([absorbed_query(emitter, a.q_nope, a.w_uk, a.dims), a.q_pe], 3)
    rows = emitter.reshape(query, [slots, -1, int(a.latent.shape[2])])
    products = emitter.reshape(emitter.matmul(rows, a.latent, transpose_b=True), [slots, tokens, heads, length])
    weights = emitter.reshape(_weights(emitter, a, products), [slots, -1, length])
    mixed = emitter.matmul(weights, emitter.slice(a.latent, [0, 0, 0], [slots, length, latent]))
    return values_of(emitter, mixed, a.w_uv, (slots, tokens), a.dims)


def absorbed_query(emitter: Emitter, q_nope: ITensor, w_uk: ITensor, dims: Dims) -> ITensor:
    """q_nope [B, S, H, Dn] through W^UK: [B, S, H, Dc], the query of the latent space."""
    heads, nope, latent = (dims[name] for name in ("H", "Dn", "Dc"))
    slots, tokens = emitter.dim(q_nope, 0), emitter.dim(q_nope, 1)
    by_head = emitter.reshape(emitter.transpose(q_nope, [2, 0, 1, 3]), [heads, -1, nope])
    absorbed = emitter.reshape(emitter.matmul(by_head, w_uk), [heads, slots, tokens, latent])
    return emitter.transpose(absorbed, [1, 2, 0, 3])


def values_of(emitter: Emitter, mixed: ITensor, w_uv: ITensor, lead: tuple[Size, Size], dims: Dims) -> ITensor:
    """Mixed latents, B * S * H of Dc numbers, through W^UV: [B, S, H*Dv]."""
    heads, value, latent = (dims[name] for name in ("H", "Dv", "Dc"))
    by_head = emitter.transpose(emitter.reshape(mixed, [-1, heads, latent]), [1, 0, 2])
    out = emitter.transpose(emitter.matmul(by_head, w_uv), [1, 0, 2])
    return emitter.reshape(out, [*lead, heads * value])


def _weights(emitter: Emitter, a: Attention, products: ITensor) -> ITensor:
    """Softmax of products [B, S, H, L] over the rows that a query sees, computed in float32."""
    scale = emitter.constant(np.full((1, 1, 1, 1), a.scale, np.float32))
    scaled = emitter.mul(emitter.cast(products, emitter.float32), scale)
    nothing = emitter.constant(np.full((1, 1, 1, 1), -np.inf, np.float32))
    visible = emitter.unsqueeze(_visible(emitter, a), [2])
    return emitter.cast(emitter.softmax(emitter.select(visible, scaled, nothing), 3), emitter.compute)


def _visible(emitter: Emitter, a: Attention) -> ITensor:
    """Which rows a query sees: row t of slot b for query s iff t <= start[b] + s; bool [B, S, L]."""
    steps = emitter.unsqueeze(emitter.arange(emitter.dim(a.q_nope, 1)), [0])
    last = emitter.unsqueeze(emitter.add(emitter.unsqueeze(a.start, [1]), steps), [2])
    rows = emitter.unsqueeze(emitter.arange(emitter.dim(a.latent, 1)), [0, 1])
    return emitter.binary("LESS", rows, emitter.add(last, emitter.constant(np.ones((1, 1, 1), np.int64))))


def _decompressed(emitter: Emitter, a: Attention) -> ITensor:
    """Attention with K and V projected up from the latent: [B, S, H*Dv]."""
    heads, nope, rope, value, latent = (a.dims[name] for name in ("H", "Dn", "Dr", "Dv", "Dc"))
    slots, tokens, length = emitter.dim(a.q_nope, 0), emitter.dim(a.q_nope, 1), emitter.dim(a.latent, 1)
    width = -(-max(nope + rope, value) // _WIDTHS) * _WIDTHS
    compressed = emitter.unsqueeze(emitter.slice(a.latent, [0, 0, 0], [slots, length, latent]), [1])
    k_nope = emitter.matmul(compressed, a.w_uk, transpose_b=True)
    k_pe = emitter.unsqueeze(emitter.slice(a.latent, [0, 0, latent], [slots, length, rope]), [1])
    key = _of_width(emitter, [k_nope, emitter.expand(k_pe, [slots, heads, length, rope])], width)
    values = _of_width(emitter, [emitter.matmul(compressed, a.w_uv)], width)
    query = emitter.transpose(_of_width(emitter, [a.q_nope, a.q_pe], width), [0, 2, 1, 3])
    out = _fused(emitter, _scaled(emitter, query, a.scale), key, values, emitter.unsqueeze(_visible(emitter, a), [1]))
    narrow = out if value == width else emitter.slice(out, [0, 0, 0, 0], [slots, heads, tokens, value])
    return emitter.reshape(emitter.transpose(narrow, [0, 2, 1, 3]), [slots, tokens, heads * value])


def _of_width(emitter: Emitter, parts: Sequence[ITensor], width: int) -> ITensor:
    """Tensors of four axes side by side, filled up with zeros to [.., .., .., width]."""
    missing = width - sum(int(part.shape[3]) for part in parts)
    filled = list(parts)
    if missing:
        sizes: list[Size] = [emitter.dim(parts[0], axis) for axis in range(3)]
        zero = emitter.constant(np.zeros((1, 1, 1, 1), np.float32), parts[0].dtype)
        filled.append(emitter.expand(zero, [*sizes, missing]))
    return emitter.concat(filled, 3) if len(filled) > 1 else filled[0]


def _scaled(emitter: Emitter, query: ITensor, scale: float) -> ITensor:
    """TensorRT's attention scales nothing by itself."""
    factor = emitter.constant(np.full((1, 1, 1, 1), scale, np.float32))
    return emitter.cast(emitter.mul(emitter.cast(query, emitter.float32), factor), emitter.compute)


def _fused(emitter: Emitter, query: ITensor, key: ITensor, value: ITensor, visible: ITensor) -> ITensor:
    """Attention per head, [B, H, S, D] and [B, H, L, D]; `visible` is bool [B, 1, S, L]."""
    softmax, no_mask = emitter.trt.AttentionNormalizationOp.SOFTMAX, emitter.trt.CausalMaskKind.NONE
    attention = emitter.named(emitter.network.add_attention_v2(query, key, value, softmax, no_mask), "attention")
    attention.mask = visible
    # For widths, types and devices that no fused kernel serves.
    attention.decomposable = True
    return attention.get_output(0)


ROWS: Mapping[Key, Row] = {
    (DOMAIN, op): Row(mla_attention) for op in ("MlaAttention", "MlaAttentionFp8Block", "MlaAttentionInt")
}
