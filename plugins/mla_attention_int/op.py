"""dsv3::MlaAttentionInt: MlaAttention with its two up-projections as 8-bit integers.

Each is scaled per column of what a decode step multiplies with: W^UK [H, Dn, Dc] per head and latent channel, W^UV
[H, Dc, Dv] per head and value channel, so that the scale can be applied to the integer product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.mla_attention.function import body
from dsv3export.plugins.mla_attention.op import decompressed
from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port


@torch.library.custom_op("dsv3::mla_attention_int", mutates_args=())
def mla_attention_int(
    q_nope: Tensor,
    q_pe: Tensor,
    cache: Tensor,
    w_uk: Tensor,
    w_uk_scale: Tensor,
    w_uv: Tensor,
    w_uv_scale: Tensor,
    start: Tensor,
    scale: float,
) -> Tensor:
    """`mla_attention` with kv_b put together from its dequantised parts.

    Args:
        w_uk: int8 [H, Dn, Dc].
        w_uk_scale: float32 [H, 1, Dc].
        w_uv: int8 [H, Dc, Dv].
        w_uv_scale: float32 [H, 1, Dv].

    Returns:
        [B, S, H*Dv].
    """
    keys = w_uk.to(torch.float32) * w_uk_scale
    values = (w_uv.to(torch.float32) * w_uv_scale).transpose(1, 2)
    kv_b = torch.cat([keys, values], dim=1).flatten(0, 1)
    return decompressed(q_nope, q_pe, cache, kv_b, start, scale)


@mla_attention_int.register_fake
def _(
    q_nope: Tensor,
    q_pe: Tensor,
    cache: Tensor,
    w_uk: Tensor,
    w_uk_scale: Tensor,
    w_uv: Tensor,
    w_uv_scale: Tensor,
    start: Tensor,
    scale: float,
) -> Tensor:
    return q_nope.new_empty((*q_nope.shape[:2], q_nope.shape[2] * w_uv.shape[2]))


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: dequantise, then as dsv3::MlaAttention."""
    return f"""
MlaAttentionInt (q_nope, q_pe, cache, w_uk_q, w_uk_scale, w_uv_q, w_uv_scale, start) => (out) {{
    w_uk_float = Cast <to = 1> (w_uk_q)
    w_uk = Mul (w_uk_float, w_uk_scale)
    w_uv_float = Cast <to = 1> (w_uv_q)
    w_uv_t = Mul (w_uv_float, w_uv_scale)
{body(dims, attributes)}
}}
"""


MLA_ATTENTION_INT = Op(
    name="MlaAttentionInt",
    torch_name="dsv3::mla_attention_int",
    doc="Multi-head latent attention with 8-bit up-projections, scaled per column.",
    inputs=(
        Port("q_nope", ("float",), ("B", "S", "H", "Dn")),
        Port("q_pe", ("float",), ("B", "S", "H", "Dr")),
        Port("cache", ("float",), ("B", "T", "Dc+Dr")),
        Port("w_uk", ("int8",), ("H", "Dn", "Dc")),
        Port("w_uk_scale", ("float",), ("H", "1", "Dc")),
        Port("w_uv", ("int8",), ("H", "Dc", "Dv")),
        Port("w_uv_scale", ("float",), ("H", "1", "Dv")),
        Port("start", ("int64",), ("B",)),
    ),
    outputs=(Port("out", ("float",), ("B", "S", "H*Dv")),),
    attributes=(Attribute("scale", "float", "softmax scale, YaRN's mscale squared folded in"),),
    kernel=mla_attention_int,
    function=function,
)
