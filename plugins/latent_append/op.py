"""dsv3::LatentAppend: write the new tokens' latents into the cache, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.registry import Attributes, Dims, Op, Port


def append_in_place(cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor) -> Tensor:
    """Write [kv_c | k_pe] of slot b into rows start[b] .. start[b]+S-1 of `cache` and return `cache`.

    Args:
        cache: [B, T, Dc+Dr], updated in place.
        kv_c: [B, S, Dc], the normalised compressed K/V (DeepSeek-V3 paper, eq. 1, after the RMSNorm).
        k_pe: [B, S, Dr], the rotated shared key part (eq. 3).
        start: [B] int64, the number of tokens each slot holds already; start[b] + S <= T.
    """
    return write_rows(cache, torch.cat([kv_c, k_pe], dim=-1), start)


def write_rows(cache: Tensor, rows: Tensor, start: Tensor) -> Tensor:
    """Write rows[b], [B, S, W], into rows start[b] .. start[b]+S-1 of slot b of `cache`, [B, T, W], and return that.

    Rounds to nearest even where the cache's dtype is narrower.
    """
    count = rows.shape[1]
    for slot, first in enumerate(start.tolist()):
        cache[slot, first : first + count] = rows[slot]
    return cache


@torch.library.custom_op("dsv3::latent_append", mutates_args=())
def latent_append(cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor) -> Tensor:
    """`append_in_place` on a copy: a traced graph has no side effects; the alias is a fact of the op's schema."""
    return append_in_place(cache.clone(), kv_c, k_pe, start)


@latent_append.register_fake
def _(cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor) -> Tensor:
    return torch.empty_like(cache)


# TensorScatter (opset 24) writes in place when past and present are one buffer.
def function(dims: Dims, attributes: Attributes) -> str:
    return """
LatentAppend (cache, kv_c, k_pe, start) => (updated) {
    rows = Concat <axis = -1> (kv_c, k_pe)
    updated = TensorScatter <axis = 1, mode = "linear"> (cache, rows, start)
}
"""


LATENT_APPEND = Op(
    name="LatentAppend",
    torch_name="dsv3::latent_append",
    doc="cache[b, start[b] + s] = concat(kv_c[b, s], k_pe[b, s]); the latent cache of multi-head latent attention.",
    inputs=(
        Port("cache", ("float",), ("B", "T", "Dc+Dr")),
        Port("kv_c", ("float",), ("B", "S", "Dc")),
        Port("k_pe", ("float",), ("B", "S", "Dr")),
        Port("start", ("int64",), ("B",)),
    ),
    outputs=(Port("updated", ("float",), ("B", "T", "Dc+Dr")),),
    attributes=(),
    kernel=append_in_place,
    function=function,
    aliases=(("updated", "cache"),),
)
