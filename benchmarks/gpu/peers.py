"""What our kernels are compared with: torch's own products and attention, and other libraries where they are installed.

A peer is made of the same tensors as ours and must give the same numbers; one that is refused, or is wrong, is reported
so and has no time. None of them is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.shapes import GROUP, LATENT, NOPE, Case
from benchmarks.gpu.work import SCALE, Work
from dsv3export.plugins.linear_int.op import unpack

Peer = Callable[[int], Tensor]
Sets = Sequence[tuple[Tensor, ...]]


def peers_of(case: Case, work: Work) -> Iterator[tuple[str, Callable[[], Peer]]]:
    """Names, and how each peer is made ready: conversions of weights are not its time. Making one may raise."""
    for name, make in _PEERS.get(case.kernel, {}).items():
        yield name, lambda make=make: make(case, work.sets)


def scaled_mm_blocks(layout: int) -> Callable[[Case, Sets], Peer]:
    """``torch.nn.functional.scaled_mm`` with 1 x 128 by 128 x 128 scales, in one of the layouts that versions want."""

    def make(case: Case, sets: Sets) -> Peer:
        kinds = functional.ScalingType
        ready = [
            (values, _column_major(scale), weight.T, _block_scales(weight_scale, layout))
            for values, scale, weight, weight_scale in sets
        ]

        def run(copy: int) -> Tensor:
            a, a_scale, b, b_scale = ready[copy]
            return functional.scaled_mm(
                a, b, a_scale, kinds.BlockWise1x128, b_scale, kinds.BlockWise128x128, output_dtype=torch.bfloat16
            )

        return run

    return make


def _column_major(scale: Tensor) -> Tensor:
    return scale.T.contiguous().T


def _block_scales(scale: Tensor, layout: int) -> Tensor:
    """Scales [N / 128, K / 128]: as they are, transposed, or with their rows padded to 4 numbers."""
    if layout == 0:
        return scale
    if layout == 1:
        return scale.T.contiguous()
    rows, columns = scale.shape
    padded = scale.new_zeros(rows, -(-columns // 4) * 4)
    padded[:, :columns] = scale
    return padded[:, :columns] if layout == 2 else padded[:, :columns].T


def scaled_mm_rows(case: Case, sets: Sets) -> Peer:
    """``torch._scaled_mm`` with a scale for each row and column: other numbers, an FP8 product without blocks."""
    ready = []
    for values, scale, weight, weight_scale in sets:
        per_column = weight_scale.mean(dim=1).repeat_interleave(128)[: weight.shape[0]]
        ready.append((values, weight.T, scale.mean(dim=1, keepdim=True), per_column[None].contiguous()))

    def run(copy: int) -> Tensor:
        a, b, a_scale, b_scale = ready[copy]
        return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16)

    return run


def deep_gemm(case: Case, sets: Sets) -> Peer:
    """DeepSeek's DeepGEMM."""
    library = import_module("deep_gemm")

    def run(copy: int) -> Tensor:
        values, scale, weight, weight_scale = sets[copy]
        out = torch.empty(values.shape[0], weight.shape[0], dtype=torch.bfloat16, device=values.device)
        library.fp8_gemm_nt((values, scale), (weight, weight_scale), out)
        return out

    return run


def bf16_linear(case: Case, sets: Sets) -> Peer:
    """cuBLAS on weights of 16 bits, with the same values as the integers."""
    bits, inner = case.number("bits"), case.number("K")
    ready = []
    for x, weight, scale in sets:
        numbers = unpack(weight, bits, inner).bfloat16() - 2.0 ** (bits - 1)
        ready.append((x, numbers * scale.repeat_interleave(GROUP, dim=1).bfloat16()))
    return lambda copy: functional.linear(*ready[copy])


def int4_pack_mm(case: Case, sets: Sets) -> Peer:
    """``torch._weight_int4pack_mm``, torch's own 4-bit product; it has the even columns in the upper four bits."""
    if case.number("bits") != 4:
        raise NotImplementedError("4 bits only")
    ready = []
    for x, weight, scale in sets:
        swapped = (weight >> 4) | (weight << 4)
        packed = torch._convert_weight_to_int4pack(swapped, 8)
        scales = scale.T.bfloat16()
        ready.append((x, packed, torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()))

    def run(copy: int) -> Tensor:
        x, packed, scales = ready[copy]
        return torch._weight_int4pack_mm(x, packed, GROUP, scales)

    return run


def sdpa_latent(case: Case, sets: Sets) -> Peer:
    """sdpa with the heads as queries of one head, over the latents as they lie: its K and V are views of the cache."""
    if case.text("cache") != "bf16" or case.number("queries") != 1:
        raise NotImplementedError("a bf16 cache and one query only")

    def run(copy: int) -> Tensor:
        q, q_pe, cache = sets[copy]
        query = torch.cat([q, q_pe], dim=-1)
        keys = cache[:, None]
        return functional.scaled_dot_product_attention(query, keys, keys[..., :LATENT], scale=SCALE)

    return run


def flash_mla(case: Case, sets: Sets) -> Peer:
    """DeepSeek's FlashMLA, over the cache cut into pages of 64 tokens."""
    library = import_module("flash_mla")
    if case.text("cache") != "bf16":
        raise NotImplementedError("a bf16 cache only")
    length, queries, heads, batch = (case.number(name) for name in ("length", "queries", "heads", "batch"))
    pages = length // 64
    lengths = torch.full((batch,), length, dtype=torch.int32, device=sets[0][0].device)
    table = torch.arange(batch * pages, dtype=torch.int32, device=lengths.device).view(batch, pages)
    plan = library.get_mla_metadata(lengths, queries * heads, 1)

    def run(copy: int) -> Tensor:
        q, q_pe, cache = sets[copy]
        paged = cache.view(batch * pages, 64, 1, cache.shape[-1])
        out: Tensor = library.flash_mla_with_kvcache(
            torch.cat([q, q_pe], dim=-1), paged, table, lengths, LATENT, *plan, SCALE, True
        )[0]
        return out

    return run


def flashinfer_mla(case: Case, sets: Sets) -> Peer:
    """FlashInfer's attention over paged latents, pages of 64 tokens."""
    library = import_module("flashinfer")
    if case.text("cache") != "bf16":
        raise NotImplementedError("a bf16 cache only")
    length, queries, heads, batch = (case.number(name) for name in ("length", "queries", "heads", "batch"))
    device, pages = sets[0][0].device, length // 64
    wrapper = library.mla.BatchMLAPagedAttentionWrapper(torch.empty(128 << 20, dtype=torch.int8, device=device))
    starts = torch.arange(batch + 1, dtype=torch.int32, device=device)
    wrapper.plan(
        starts * queries, starts * pages, torch.arange(batch * pages, dtype=torch.int32, device=device),
        torch.full((batch,), length, dtype=torch.int32, device=device),
        heads, LATENT, sets[0][1].shape[-1], 64, True, SCALE, torch.bfloat16, torch.bfloat16,
    )  # fmt: skip

    def run(copy: int) -> Tensor:
        q, q_pe, cache = sets[copy]
        paged = cache.view(batch * pages, 64, cache.shape[-1])
        out: Tensor = wrapper.run(
            q.flatten(0, 1), q_pe.flatten(0, 1), paged[..., :LATENT], paged[..., LATENT:], return_lse=False
        )
        return out.view_as(q)

    return run


def sdpa_prefill(case: Case, sets: Sets) -> Peer:
    """sdpa on keys of 192 and values of 128, put together before; causal from the last rows where there is a cache."""
    cached, queries = case.number("cached"), case.number("queries")
    ready = []
    for q, q_pe, kv, cache in sets:
        rope = cache[:, :, None, LATENT:].expand(-1, -1, q.shape[2], -1)
        keys = torch.cat([kv[..., :NOPE], rope], dim=-1).transpose(1, 2).contiguous()
        ready.append((torch.cat([q, q_pe], dim=-1).transpose(1, 2), keys, kv[..., NOPE:].transpose(1, 2).contiguous()))
    mask = None
    if cached:
        rows = cached + torch.arange(queries, device=keys.device)[:, None]
        mask = torch.arange(cached + queries, device=keys.device) <= rows

    def run(copy: int) -> Tensor:
        out = functional.scaled_dot_product_attention(*ready[copy], attn_mask=mask, is_causal=mask is None, scale=SCALE)
        return out.transpose(1, 2)

    return run


def grouped_mm(case: Case, sets: Sets) -> Peer:
    """``torch._grouped_mm`` on bfloat16 experts, tokens sorted by expert: twice the bytes of FP8."""
    if case.text("format") != "fp8":
        raise NotImplementedError("compared with FP8 weights only")
    product = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    banks = [_wide_bank(sets[0][3 + 2 * place], sets[0][4 + 2 * place]) for place in range(3)]

    def run(copy: int) -> Tensor:
        x, ids, weights = sets[copy][:3]
        flat = ids.flatten()
        order = flat.argsort()
        # Not bincount, which waits for the device.
        counts = torch.zeros(banks[0].shape[0], dtype=torch.int32, device=x.device)
        ends = counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32)).cumsum(0).to(torch.int32)
        token = order // ids.shape[1]
        rows = x[token]
        gate, up = (product(rows, bank.transpose(1, 2), offs=ends) for bank in banks[:2])
        each = product(functional.silu(gate) * up, banks[2].transpose(1, 2), offs=ends)
        weighted = each.float() * weights.flatten()[order, None]
        return torch.zeros_like(x, dtype=torch.float32).index_add_(0, token, weighted).to(x.dtype)

    return run


def _wide_bank(numbers: Tensor, scale: Tensor) -> Tensor:
    """An FP8 bank [E, N, K] in bfloat16, one expert at a time."""
    wide = torch.empty(numbers.shape, dtype=torch.bfloat16, device=numbers.device)
    rows, inner = numbers.shape[1:]
    for expert, (part, factors) in enumerate(zip(numbers, scale, strict=True)):
        spread = factors.repeat_interleave(128, dim=0)[:rows].repeat_interleave(128, dim=1)[:, :inner]
        wide[expert] = (part.float() * spread).bfloat16()
    return wide


_PEERS: Mapping[str, Mapping[str, Callable[[Case, Sets], Peer]]] = {
    "fp8_gemm": {
        **{f"torch scaled_mm blocks, layout {layout}": scaled_mm_blocks(layout) for layout in range(4)},
        "torch _scaled_mm rows (other numbers)": scaled_mm_rows,
        "DeepGEMM": deep_gemm,
    },
    "int_gemm": {"torch _weight_int4pack_mm": int4_pack_mm, "torch linear, bf16": bf16_linear},
    "mla_decode": {"torch sdpa": sdpa_latent, "FlashMLA": flash_mla, "FlashInfer": flashinfer_mla},
    "mla_prefill": {"torch sdpa": sdpa_prefill},
    "moe_experts": {"torch _grouped_mm, bf16": grouped_mm},
}
OTHER_NUMBERS = frozenset({"torch _scaled_mm rows (other numbers)"})
"""Peers of another arithmetic, whose results are not compared."""
