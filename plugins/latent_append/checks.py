"""Checks of the cache's writing: ragged slots, up to the capacity, dims that are no powers of two, saturation."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.latent_append.op import append_in_place
from dsv3export.plugins.latent_append.tensorrt import LARGEST, LATENT_APPEND


def _append(
    name: str,
    start: list[int],
    count: int,
    capacity: int,
    dims: tuple[int, int],
    cache_dtype: str = "",
    size: float = 1.0,
) -> Check:
    latent, rope = dims

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random, slots = Samples(name), len(start)
        stored = cache_dtype or dtype
        cache = random.normal(slots, capacity, latent + rope).to(DTYPES[stored])
        kv_c = random.normal(slots, count, latent, scale=size).to(DTYPES[dtype])
        k_pe = random.normal(slots, count, rope, scale=size).to(DTYPES[dtype])
        held = torch.tensor(start)
        largest = LARGEST[stored] or float("inf")
        rows = [part.float().clamp(-largest, largest) for part in (kv_c, k_pe)]
        expected = append_in_place(cache.clone(), rows[0], rows[1], held)
        (updated,) = call(LATENT_APPEND, (cache, kv_c, k_pe, held))
        return [(updated, expected)]

    return Check("LatentAppend", name, compare, exact=True)


CHECKS = (
    _append("first token", [0], 1, 1, (3, 2)),
    _append("ragged", [0, 5, 2], 3, 8, (4, 2)),
    _append("up to the capacity", [7, 0], 2, 9, (20, 8)),
    _append("true dims", [127, 128, 0], 2, 130, (512, 64)),
    _append("into bfloat16", [3, 0], 2, 6, (40, 20), "BF16"),
    _append("float16 saturates", [3, 0], 2, 6, (40, 20), "F16", 1e4),
)
