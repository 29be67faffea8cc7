"""dsv3::LatentAppendFp8: the new tokens' latents into a cache of float8 e4m3 with scales, in place, and what it holds.

A row keeps the latent kv_c as e4m3 numbers in groups with a scale each, and beside them, in bfloat16, the rotary part
k_pe and the scales: the form of FlashMLA's FP8 cache, whose scales are float32. The rotary part has no norm that bounds
it, and rounding it to e4m3 costs more than all of the latent (docs/design.md has the figures).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.latent_append.op import LATENT_APPEND, write_rows
from dsv3export.plugins.latent_append_fp8.function import LARGEST, TINY, function
from dsv3export.plugins.registry import Op, Port


def rounded_rows(kv_c: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """kv_c [B, S, Dc] as float8 e4m3 of that shape, and the scales, bfloat16 [B, S, groups].

    A scale is amax / 448 of its group, rounded to bfloat16. A number that the rounding carries beyond 448 is 448.
    """
    grouped = kv_c.unflatten(-1, (groups, -1))
    amax = grouped.abs().amax(-1, keepdim=True).clamp_min(TINY)
    scale = (amax / LARGEST).to(torch.bfloat16)
    numbers = (grouped / scale.to(torch.float32)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return numbers.flatten(-2), scale.squeeze(-1)


def append_and_read(
    cache: Tensor, side: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the rounded rows as LatentAppend does, and read what attention is to see.

    Args:
        cache: [B, T, Dc] float8 e4m3, updated in place.
        side: [B, T, Dr+G] bfloat16, updated in place: the rotary part, then the scales of the G groups.
        kv_c: [B, S, Dc] float32.
        k_pe: [B, S, Dr] float32.
        start: [B] int64, as in LatentAppend.

    Returns:
        cache, side, and their rows up to the longest slot's length L = max(start) + S as float32 [B, L, Dc+Dr].
    """
    rope = k_pe.shape[2]
    groups = side.shape[2] - rope
    numbers, scale = rounded_rows(kv_c, groups)
    write_rows(cache, numbers, start)
    write_rows(side, torch.cat([k_pe.to(side.dtype), scale], dim=-1), start)
    longest = int(start.max()) + kv_c.shape[1]
    seen, beside = cache[:, :longest].to(torch.float32), side[:, :longest].to(torch.float32)
    latent = (seen.unflatten(-1, (groups, -1)) * beside[..., rope:, None]).flatten(-2)
    return cache, side, torch.cat([latent, beside[..., :rope]], dim=-1)


@torch.library.custom_op("dsv3::latent_append_fp8", mutates_args=())
def latent_append_fp8(
    cache: Tensor, side: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`append_and_read` on copies."""
    return append_and_read(cache.clone(), side.clone(), kv_c, k_pe, start)


@latent_append_fp8.register_fake
def _(cache: Tensor, side: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size()
    latent = kv_c.new_empty((cache.shape[0], longest, cache.shape[2] + k_pe.shape[2]))
    return torch.empty_like(cache), torch.empty_like(side), latent


LATENT_APPEND_FP8 = Op(
    name="LatentAppendFp8",
    torch_name="dsv3::latent_append_fp8",
    doc="LatentAppend into a cache of float8 e4m3 with a scale per group, k_pe and the scales beside it in bfloat16; "
    "`latent` is what they hold up to the longest slot's length L, in float32.",
    inputs=(
        Port("cache", ("float8e4m3fn",), ("B", "T", "Dc")),
        Port("side", ("bfloat16",), ("B", "T", "Dr+G")),
        *LATENT_APPEND.inputs[1:],
    ),
    outputs=(
        Port("updated", ("float8e4m3fn",), ("B", "T", "Dc")),
        Port("updated_side", ("bfloat16",), ("B", "T", "Dr+G")),
        Port("latent", ("float",), ("B", "L", "Dc+Dr")),
    ),
    attributes=(),
    kernel=append_and_read,
    function=function,
    derived_dims=(("G", lambda dims: dims["Dr+G"] - dims["Dr"]),),
    aliases=(("updated", "cache"), ("updated_side", "side")),
    opset=26,
)
