"""dsv3::LatentAppendHalf: write the new tokens' latents into a 16-bit cache, in place, and read what it then holds."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.latent_append.op import LATENT_APPEND, write_rows
from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port

# ONNX text: `longest` [1], how many rows of the cache the longest slot has after the step; and constants.
LONGEST = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    latest = ReduceMax <keepdims = 1> (start)
    appended = Shape <start = 1, end = 2> (kv_c)
    longest = Add (latest, appended)"""


def append_and_read(cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Write [kv_c | k_pe], rounded to nearest even, as LatentAppend does, and read what attention is to see.

    Rounding happens once, when a row is written: a token sees itself as later ones will see it, so that any way of
    cutting a sequence into steps computes the same.

    Args:
        cache: [B, T, Dc+Dr] bfloat16 or float16, updated in place.
        kv_c: [B, S, Dc] float32.
        k_pe: [B, S, Dr] float32. Unlike kv_c, which was normalised, it may have any size.
        start: [B] int64, as in LatentAppend.
        largest: The largest number of the cache's type; what is beyond it becomes it.

    Returns:
        The cache, and its rows up to the longest slot's length L = max(start) + S as float32 [B, L, Dc+Dr].
    """
    write_rows(cache, torch.cat([kv_c, k_pe], dim=-1).clamp(-largest, largest), start)
    return cache, cache[:, : int(start.max()) + kv_c.shape[1]].to(torch.float32)


@torch.library.custom_op("dsv3::latent_append_half", mutates_args=())
def latent_append_half(
    cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor, largest: float
) -> tuple[Tensor, Tensor]:
    """`append_and_read` on a copy."""
    return append_and_read(cache.clone(), kv_c, k_pe, start, largest)


@latent_append_half.register_fake
def _(cache: Tensor, kv_c: Tensor, k_pe: Tensor, start: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size()
    return torch.empty_like(cache), kv_c.new_empty((cache.shape[0], longest, cache.shape[2]))


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text. Only the rows that are read are widened."""
    largest = attributes["largest"]
    return f"""
LatentAppendHalf (cache, kv_c, k_pe, start) => (updated, latent) {{
    exact = Concat <axis = -1> (kv_c, k_pe)
    least = Constant <value_float = {-largest!r}> ()
    most = Constant <value_float = {largest!r}> ()
    saturated = Clip (exact, least, most)
    rows = CastLike (saturated, cache)
    updated = TensorScatter <axis = 1, mode = "linear"> (cache, rows, start)
{LONGEST}
    seen = Slice (updated, zero, longest, one)
    latent = Cast <to = 1> (seen)
}}
"""


LATENT_APPEND_HALF = Op(
    name="LatentAppendHalf",
    torch_name="dsv3::latent_append_half",
    doc="LatentAppend into a 16-bit cache; `latent` is the cache up to the longest slot's length L, in float32.",
    inputs=(Port("cache", ("bfloat16", "float16"), ("B", "T", "Dc+Dr")), *LATENT_APPEND.inputs[1:]),
    outputs=(
        Port("updated", ("bfloat16", "float16"), ("B", "T", "Dc+Dr")),
        Port("latent", ("float",), ("B", "L", "Dc+Dr")),
    ),
    attributes=(Attribute("largest", "float", "the cache's largest number, at which values saturate"),),
    kernel=append_and_read,
    function=function,
    aliases=LATENT_APPEND.aliases,
)
