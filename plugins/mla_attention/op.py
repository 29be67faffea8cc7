"""dsv3::MlaAttention: multi-head latent attention over the latent cache, causal, ragged.

The definition is the decompressed ("naive") form: K and V are projected up from the latent and attended to per head.
`absorbed` computes the same from the latent itself, W^UK absorbed into the query and W^UV into the output
(DeepSeek-V2 paper, section 2.1.2); it is what a decode step should do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.mla_attention.function import function
from dsv3export.plugins.registry import FLOATS, Attribute, Op, Port


def visible(start: Tensor, queries: int, longest: int) -> Tensor:
    """Which cache rows a query row may see: row t of slot b for query s iff t <= start[b] + s.

    Returns:
        [B, 1, S, longest] bool.
    """
    rows = torch.arange(longest, device=start.device)
    last = start[:, None] + torch.arange(queries, device=start.device)
    return (rows <= last[:, :, None])[:, None]


def _weights(scores: Tensor, start: Tensor, scale: float) -> Tensor:
    """Masked softmax of [B, H, S, T] scores."""
    seen = visible(start, scores.shape[2], scores.shape[3])
    return torch.softmax((scores * scale).masked_fill(~seen, float("-inf")), dim=-1)


def _up_projections(kv_b: Tensor, heads: int, nope: int) -> tuple[Tensor, Tensor]:
    """Split kv_b_proj's weight [H*(Dn+Dv), Dc] into W^UK [H, Dn, Dc] and W^UV [H, Dv, Dc]."""
    per_head = kv_b.unflatten(0, (heads, -1))
    return per_head[:, :nope], per_head[:, nope:]


def decompressed(q_nope: Tensor, q_pe: Tensor, cache: Tensor, kv_b: Tensor, start: Tensor, scale: float) -> Tensor:
    """Attention with K and V projected up from the latent; see `mla_attention` for the arguments."""
    batch, queries, heads, nope = q_nope.shape
    latent = cache[:, : int(start.max()) + queries]
    kv_c, k_pe = latent.split([kv_b.shape[1], q_pe.shape[3]], dim=-1)
    w_uk, w_uv = _up_projections(kv_b.to(q_nope.dtype), heads, nope)
    k_nope = torch.einsum("btc,hdc->bhtd", kv_c, w_uk)
    value = torch.einsum("btc,hdc->bhtd", kv_c, w_uv)
    scores = torch.einsum("bshd,bhtd->bhst", q_nope, k_nope) + torch.einsum("bshr,btr->bhst", q_pe, k_pe)
    out = torch.einsum("bhst,bhtd->bshd", _weights(scores, start, scale), value)
    return out.reshape(batch, queries, -1)


def absorbed(q_nope: Tensor, q_pe: Tensor, cache: Tensor, kv_b: Tensor, start: Tensor, scale: float) -> Tensor:
    """Attention in the latent space itself; see `mla_attention` for the arguments."""
    batch, queries, heads, nope = q_nope.shape
    latent = cache[:, : int(start.max()) + queries]
    w_uk, w_uv = _up_projections(kv_b.to(q_nope.dtype), heads, nope)
    query = torch.cat([torch.einsum("bshd,hdc->bshc", q_nope, w_uk), q_pe], dim=-1)
    scores = torch.einsum("bshw,btw->bhst", query, latent)
    mixed = torch.einsum("bhst,btc->bshc", _weights(scores, start, scale), latent[..., : kv_b.shape[1]])
    return torch.einsum("bshc,hdc->bshd", mixed, w_uv).reshape(batch, queries, -1)


@torch.library.custom_op("dsv3::mla_attention", mutates_args=())
def mla_attention(q_nope: Tensor, q_pe: Tensor, cache: Tensor, kv_b: Tensor, start: Tensor, scale: float) -> Tensor:
    """Causal attention of S new tokens per slot over the latent cache that holds them already.

    Args:
        q_nope: [B, S, H, Dn].
        q_pe: [B, S, H, Dr], rotated.
        cache: [B, T, Dc+Dr]; of a shorter slot, rows up to the longest slot's length are read and masked: they
            must be finite.
        kv_b: [H*(Dn+Dv), Dc], kv_b_proj's weight as stored: the dtype of the rest or a narrower float type.
        start: [B] int64; query s of slot b sits at position start[b] + s.
        scale: (Dn+Dr)^-0.5 * mscale^2.

    Returns:
        [B, S, H*Dv], before the output projection.
    """
    return decompressed(q_nope, q_pe, cache, kv_b, start, scale)


@mla_attention.register_fake
def _(q_nope: Tensor, q_pe: Tensor, cache: Tensor, kv_b: Tensor, start: Tensor, scale: float) -> Tensor:
    batch, queries, heads, nope = q_nope.shape
    return q_nope.new_empty((batch, queries, kv_b.shape[0] - heads * nope))


MLA_ATTENTION = Op(
    name="MlaAttention",
    torch_name="dsv3::mla_attention",
    doc="Multi-head latent attention (DeepSeek-V2, section 2.1) of S new tokens per slot over the latent cache.",
    inputs=(
        Port("q_nope", ("float",), ("B", "S", "H", "Dn")),
        Port("q_pe", ("float",), ("B", "S", "H", "Dr")),
        Port("cache", ("float",), ("B", "T", "Dc+Dr")),
        Port("kv_b", FLOATS, ("H*(Dn+Dv)", "Dc")),
        Port("start", ("int64",), ("B",)),
    ),
    outputs=(Port("out", ("float",), ("B", "S", "H*Dv")),),
    attributes=(Attribute("scale", "float", "softmax scale, YaRN's mscale squared folded in"),),
    kernel=mla_attention,
    function=function,
    derived_dims=(("Dv", lambda dims: dims["H*(Dn+Dv)"] // dims["H"] - dims["Dn"]),),
)
