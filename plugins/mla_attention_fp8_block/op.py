"""dsv3::MlaAttentionFp8Block: latent attention whose up-projection is float8 e4m3 in blocks of 128 x 128.

A block may lie across the border between two heads, or between a head's key and value part: so the weight stays whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.linear_fp8_block.function import dequantise_text, rounded_text
from dsv3export.plugins.linear_fp8_block.matmul import dequantise, round_activations
from dsv3export.plugins.linear_fp8_block.op import ACTIVATIONS
from dsv3export.plugins.mla_attention.function import body
from dsv3export.plugins.mla_attention.op import MLA_ATTENTION, mla_attention
from dsv3export.plugins.registry import Attributes, Dims, Op, Port


@torch.library.custom_op("dsv3::mla_attention_fp8_block", mutates_args=())
def mla_attention_fp8_block(
    q_nope: Tensor,
    q_pe: Tensor,
    cache: Tensor,
    kv_b: Tensor,
    kv_b_scale: Tensor,
    start: Tensor,
    scale: float,
    activations: str,
) -> Tensor:
    """`mla_attention` on the float32 value of kv_b.

    Args:
        kv_b: [H*(Dn+Dv), Dc] float8 e4m3, kv_b_proj's weight as stored.
        kv_b_scale: [ceil(H*(Dn+Dv) / 128), ceil(Dc / 128)] float32.
        activations: "none", or "1x128" to round the latents in the cache, which are kv_b_proj's input, as
            `quantise_activations` does; the rotary part of the cache is not multiplied with kv_b.

    Returns:
        [B, S, H*Dv].
    """
    if activations == "1x128":
        latent = kv_b.shape[1]
        cache = torch.cat([round_activations(cache[..., :latent]), cache[..., latent:]], dim=-1)
    out: Tensor = mla_attention(q_nope, q_pe, cache, dequantise(kv_b, kv_b_scale), start, scale)
    return out


@mla_attention_fp8_block.register_fake
def _(
    q_nope: Tensor,
    q_pe: Tensor,
    cache: Tensor,
    kv_b: Tensor,
    kv_b_scale: Tensor,
    start: Tensor,
    scale: float,
    activations: str,
) -> Tensor:
    batch, queries, heads, nope = q_nope.shape
    return q_nope.new_empty((batch, queries, kv_b.shape[0] - heads * nope))


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: round the latents, dequantise, then as dsv3::MlaAttention."""
    return f"""
MlaAttentionFp8Block (q_nope, q_pe, stored_cache, kv_b, kv_b_scale, start) => (out) {{
    cache_widths = Constant <value_ints = [{dims["Dc"]}, {dims["Dr"]}]> ()
    stored_latent, stored_pe = Split <axis = 2> (stored_cache, cache_widths)
{rounded_text("stored_latent", "seen_latent", dims["Dc"], attributes)}
    cache = Concat <axis = 2> (seen_latent, stored_pe)
{up_projections_text(dims)}
    w_uv_t = Transpose <perm = [0, 2, 1]> (w_uv_rows)
{body(dims, attributes)}
}}
"""


def up_projections_text(dims: Dims) -> str:
    """ONNX text: float `w_uk` [H, Dn, Dc] and `w_uv_rows` [H, Dv, Dc] from kv_b and kv_b_scale."""
    heads, nope, latent, value = dims["H"], dims["Dn"], dims["Dc"], dims["Dv"]
    return f"""{dequantise_text("kv_b", "kv_b_scale", "kv_b_value", heads * (nope + value))}
    per_head_shape = Constant <value_ints = [{heads}, {nope + value}, {latent}]> ()
    per_head = Reshape (kv_b_value, per_head_shape)
    per_head_widths = Constant <value_ints = [{nope}, {value}]> ()
    w_uk, w_uv_rows = Split <axis = 1> (per_head, per_head_widths)"""


MLA_ATTENTION_FP8_BLOCK = Op(
    name="MlaAttentionFp8Block",
    torch_name="dsv3::mla_attention_fp8_block",
    doc="Multi-head latent attention, kv_b as float8 e4m3 with a scale for each block of 128 x 128.",
    inputs=(
        Port("q_nope", ("float",), ("B", "S", "H", "Dn")),
        Port("q_pe", ("float",), ("B", "S", "H", "Dr")),
        Port("cache", ("float",), ("B", "T", "Dc+Dr")),
        Port("kv_b", ("float8e4m3fn",), ("H*(Dn+Dv)", "Dc")),
        Port("kv_b_scale", ("float",), ("ceil(H*(Dn+Dv)/128)", "ceil(Dc/128)")),
        Port("start", ("int64",), ("B",)),
    ),
    outputs=MLA_ATTENTION.outputs,
    attributes=(*MLA_ATTENTION.attributes, ACTIVATIONS),
    kernel=mla_attention_fp8_block,
    function=function,
    derived_dims=MLA_ATTENTION.derived_dims,
)
