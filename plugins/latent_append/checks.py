"""Checks of the cache's writing: ragged slots, up to the capacity, dims that are no powers of two, saturation."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.kernels.stored import NATIVE_E4M3
from dsv3export.plugins.latent_append.op import append_in_place
from dsv3export.plugins.latent_append.tensorrt import (
    LARGEST,
    LATENT_APPEND,
    LATENT_APPEND_FP8,
    LATENT_APPEND_NORMED,
    LATENT_APPEND_NORMED_FP8,
)
from dsv3export.plugins.latent_append_fp8.op import append_and_read


def append_check(
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


def _into_fp8(name: str, start: list[int], count: int, capacity: int, dims: tuple[int, int, int]) -> Check:
    """`dims`: latent, rope, groups of scales. Against `latent_append_fp8`, bit by bit."""
    latent, rope, groups = dims

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random, slots = Samples(name), len(start)
        cache = random.normal(slots, capacity, latent).to(torch.float8_e4m3fn)
        side = random.normal(slots, capacity, rope + groups).to(torch.bfloat16)
        kv_c = (random.normal(slots, count, latent) * random.uniform(0.01, 30.0, slots, count, 1)).to(DTYPES[dtype])
        kv_c[0, 0, : latent // groups] = 0.0
        k_pe = random.normal(slots, count, rope).to(DTYPES[dtype])
        held = torch.tensor(start)
        expected = append_and_read(cache.clone(), side.clone(), kv_c.float(), k_pe.float(), held)
        updated, beside = call(LATENT_APPEND_FP8, (cache, side, kv_c, k_pe, held))
        return [(updated.view(torch.uint8), expected[0].view(torch.uint8)), (beside, expected[1])]

    return Check("LatentAppendFp8", name, compare, least=NATIVE_E4M3, exact=True)


def _projected(name: str, start: list[int], count: int, capacity: int, dims: tuple[int, int, int]) -> Check:
    """From what the projection gives, with the norm and the rotation; `dims` as of `_into_fp8`, no groups: 0."""
    latent, rope, groups = dims

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random, slots = Samples(name), len(start)
        kv_a = random.normal(slots, count, latent + rope, scale=3.0).to(DTYPES[dtype])
        norm = random.uniform(0.5, 2.0, latent).to(DTYPES[dtype])
        angles = random.uniform(0.0, 6.0, slots, count, rope // 2)
        held, eps = torch.tensor(start), 1e-6
        kv_c = torch.nn.functional.rms_norm(kv_a[..., :latent].float(), (latent,), norm.float(), eps)
        even, odd = kv_a[..., latent::2].float(), kv_a[..., latent + 1 :: 2].float()
        cos, sin = angles.cos(), angles.sin()
        k_pe = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
        rows = (kv_a, norm, cos, sin, held)
        if not groups:
            cache = random.normal(slots, capacity, latent + rope).to(DTYPES[dtype])
            expected = append_in_place(cache.float().clone(), kv_c, k_pe, held)
            (updated,) = call(LATENT_APPEND_NORMED, (cache, *rows), eps=eps)
            return [(updated, expected)]
        numbers = random.normal(slots, capacity, latent).to(torch.float8_e4m3fn)
        side = random.normal(slots, capacity, rope + groups).to(torch.bfloat16)
        right = append_and_read(numbers.clone(), side.clone(), kv_c, k_pe, held)
        updated, beside = call(LATENT_APPEND_NORMED_FP8, (numbers, side, *rows), eps=eps)
        return [(updated.float(), right[0].float()), (beside, right[1].float())]

    # A sum in another order may tip a number over an edge between two of e4m3.
    dtypes, least = (("BF16", "F16"), NATIVE_E4M3) if groups else (("BF16", "F16", "F32"), 80)
    return Check("LatentAppendFp8" if groups else "LatentAppend", name, compare, dtypes, least, slack=4.0)


CHECKS = (
    append_check("first token", [0], 1, 1, (3, 2)),
    append_check("ragged", [0, 5, 2], 3, 8, (4, 2)),
    append_check("up to the capacity", [7, 0], 2, 9, (20, 8)),
    append_check("true dims", [127, 128, 0], 2, 130, (512, 64)),
    append_check("into bfloat16", [3, 0], 2, 6, (40, 20), "BF16"),
    append_check("float16 saturates", [3, 0], 2, 6, (40, 20), "F16", 1e4),
    _into_fp8("ragged, first token", [0, 5, 2], 3, 8, (16, 4, 1)),
    _into_fp8("up to the capacity, groups that are no powers of two", [7, 0], 2, 9, (60, 6, 3)),
    _into_fp8("true dims", [127, 0], 1, 128, (512, 64, 4)),
    _projected("as projected, first token", [0], 1, 1, (6, 2, 0)),
    _projected("as projected, ragged, true dims", [127, 0], 2, 129, (512, 64, 0)),
    _projected("as projected, fp8", [2, 0], 2, 4, (128, 8, 2)),
)
