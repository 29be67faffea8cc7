"""The tensors of a case, what runs on them, and the right result of a part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.gpu.shapes import GROUP, LATENT, NOPE, ROPE, VALUE, Case, Model
from dsv3export.plugins.kernels.op_kernels import OpKernels
from dsv3export.plugins.latent_append.tensorrt import LATENT_APPEND
from dsv3export.plugins.linear_fp8_block.matmul import dequantise, quantise_activations
from dsv3export.plugins.linear_fp8_block.tensorrt import FP8_BLOCK_GEMM, QUANTISE_ACTIVATIONS
from dsv3export.plugins.linear_int.op import dequantise as dequantise_int
from dsv3export.plugins.linear_int.tensorrt import summed
from dsv3export.plugins.mla_attention.prefill import MLA_PREFILL
from dsv3export.plugins.mla_attention.tensorrt import attend, attend_fp8
from dsv3export.plugins.moe_experts_fp8_block.op import moe_experts_fp8_block
from dsv3export.plugins.moe_experts_int.op import moe_experts_int
from dsv3export.plugins.moe_route.op import moe_route

SCALE = 0.1352
"""DeepSeek-V3's softmax scale with its YaRN: 192^-0.5 (0.1 ln 40 + 1)^2."""
_CHECKED_ROWS, _CHECKED_TOKENS = 64, 2

Pair = tuple[Tensor, Tensor]
Sets = Sequence[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Choice:
    """A number that an op is cut by, under which name and sizes a table keeps it, and what to try."""

    op: str
    sizes: Mapping[str, int]
    candidates: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """A case on a device.

    Attributes:
        sets: The inputs, as many copies as rotate.
        run: A copy through our kernels.
        check: From a result on the first copy, a part of it and what float32 arithmetic makes of the same inputs.
        slack: Allows so many times the tolerance of the type, where a rounding in between may tip another.
        choices: What tuning tries beside the tiles.
        experts_hit: How many experts the tokens of `moe_experts` chose.
    """

    sets: Sets
    run: Callable[[OpKernels, int], Tensor]
    check: Callable[[Tensor], Pair]
    slack: float = 1.0
    choices: tuple[Choice, ...] = ()
    experts_hit: int = 0


@dataclass
class Source:
    """Random tensors on a device, the same for the same seed."""

    device: torch.device
    seed: int = 0
    model: Model = field(default_factory=Model)

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def bytes(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=self.generator, device=self.device, dtype=torch.uint8)

    def fp8(self, *shape: int) -> tuple[Tensor, Tensor]:
        """e4m3 [.., N, K] without NaN, and scales that make products of rows of size 1."""
        *lead, rows, inner = shape
        numbers = (self.bytes(*shape) & 0xBF).view(torch.float8_e4m3fn)
        return numbers, self.uniform(0.5, 1.5, *lead, -(-rows // 128), -(-inner // 128)) * inner**-0.5

    def packed(self, bits: int, *shape: int) -> tuple[Tensor, Tensor]:
        """Packed integers [.., N, K bits / 8] and scales for each `GROUP`."""
        *lead, inner = shape
        scale = self.uniform(0.5, 1.5, *lead, inner // GROUP) * 2.0 ** (1 - bits) * inner**-0.5
        return self.bytes(*lead, inner * bits // 8), scale

    def choices(self, tokens: int) -> Tensor:
        """int64 [tokens, k]: different experts of each token, every expert equally likely."""
        scores = self.uniform(0, 1, tokens, self.model.experts)
        return scores.argsort(dim=1)[:, : self.model.choices].contiguous()


Prepare = Callable[[Case, Source, int], Work]


def fp8_gemm(case: Case, source: Source, copies: int) -> Work:
    """y = (a * a_scale) @ (w * w_scale)^T with activations quantised before."""
    m, n, k = (case.number(name) for name in "MNK")
    sets = [(*quantise_activations(source.normal(m, k).float()), *source.fp8(n, k)) for _ in range(copies)]

    def run(ops: OpKernels, copy: int) -> Tensor:
        parts = ops.linear_parts(m, n, k)
        (y,) = ops.call(FP8_BLOCK_GEMM, sets[copy], dtype="BF16", parts=parts)
        return summed(ops.call, y, parts, "BF16")

    def check(result: Tensor) -> Pair:
        values, scale, weight, weight_scale = sets[0]
        rows = min(m, _CHECKED_ROWS)
        spread = scale[:rows].repeat_interleave(128, dim=1)[:, :k]
        return result[:rows], (values[:rows].float() * spread) @ dequantise(weight, weight_scale).T

    return Work(sets, run, check, choices=(_parts("linear", {"rows": m, "columns": n, "inner": k}),))


def quantise(case: Case, source: Source, copies: int) -> Work:
    sets = [(source.normal(case.number("M"), case.number("K")),) for _ in range(copies)]

    def check(result: Tensor) -> Pair:
        return result.float(), quantise_activations(sets[0][0].float())[0].float()

    return Work(sets, lambda ops, copy: ops.call(QUANTISE_ACTIVATIONS, sets[copy])[0], check)


def int_gemm(case: Case, source: Source, copies: int) -> Work:
    bits, m, n, k = (case.number(name) for name in ("bits", "M", "N", "K"))
    how = {"bits": bits, "group": GROUP, "activations": "none"}
    sets = [(source.normal(m, k), *source.packed(bits, n, k)) for _ in range(copies)]

    def check(result: Tensor) -> Pair:
        x, weight, scale = sets[0]
        return result, x.float() @ dequantise_int(weight, scale, None, bits, GROUP, k).T

    return Work(
        sets,
        lambda ops, copy: ops("LinearInt", sets[copy], how)[0],
        check,
        choices=(_parts("linear", {"rows": m, "columns": n, "inner": k}),),
    )


def mla_decode(case: Case, source: Source, copies: int) -> Work:
    """Attention in the latent space: W^UK is in the queries, W^UV comes after."""
    heads, batch, length, queries = (case.number(name) for name in ("heads", "batch", "length", "queries"))
    start = torch.full((batch,), length - queries, device=source.device)
    fp8 = case.text("cache") == "fp8"
    sets = [_latents(source, batch, heads, length, queries, fp8) for _ in range(copies)]

    def run(ops: OpKernels, copy: int) -> Tensor:
        parts = ops.sequence_parts(batch, queries * heads, length)
        return (attend_fp8 if fp8 else attend)(ops.call, *sets[copy], start, SCALE, parts, "BF16")

    def check(result: Tensor) -> Pair:
        q, q_pe, *cache = (tensor[-1].float() for tensor in sets[0])
        latent, rope = cache[0][:, :LATENT], cache[0][:, LATENT:]
        if fp8:
            rope, scale = cache[1][:, :ROPE], cache[1][:, ROPE:]
            latent = (latent.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)
        scores = SCALE * (torch.einsum("shc,tc->sht", q, latent) + torch.einsum("shr,tr->sht", q_pe, rope))
        seen = (
            torch.arange(length, device=q.device) <= length - queries + torch.arange(queries, device=q.device)[:, None]
        )
        weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        return result[-1], torch.einsum("sht,tc->shc", weights, latent)

    sizes = {"slots": batch, "rows": queries * heads, "capacity": length}
    return Work(sets, run, check, choices=(_parts("attend", sizes),))


def _latents(source: Source, batch: int, heads: int, length: int, queries: int, fp8: bool) -> tuple[Tensor, ...]:
    q, q_pe = (source.normal(batch, queries, heads, width) for width in (LATENT, ROPE))
    if not fp8:
        return q, q_pe, source.normal(batch, length, LATENT + ROPE)
    numbers = (source.bytes(batch, length, LATENT) & 0xBF).view(torch.float8_e4m3fn)
    scales = source.uniform(0.5, 1.5, batch, length, LATENT // GROUP).bfloat16()
    return q, q_pe, numbers, torch.cat([source.normal(batch, length, ROPE), scales], dim=-1)


def mla_prefill(case: Case, source: Source, copies: int) -> Work:
    """K and V are projected before, as a product of its own."""
    heads, batch, queries, cached = (case.number(name) for name in ("heads", "batch", "queries", "cached"))
    length = cached + queries
    start = torch.full((batch,), cached, device=source.device)
    sets = [
        (
            source.normal(batch, queries, heads, NOPE),
            source.normal(batch, queries, heads, ROPE),
            source.normal(batch, length, heads, NOPE + VALUE),
            source.normal(batch, length, LATENT + ROPE),
        )
        for _ in range(copies)
    ]

    def check(result: Tensor) -> Pair:
        q, q_pe, kv, cache = (tensor[-1].float() for tensor in sets[0])
        last = slice(max(0, queries - _CHECKED_ROWS), queries)
        scores = torch.einsum("shd,thd->hst", q[last], kv[..., :NOPE])
        scores = SCALE * (scores + torch.einsum("shr,tr->hst", q_pe[last], cache[:, LATENT:]))
        row = cached + torch.arange(queries, device=q.device)[last]
        hidden = torch.arange(length, device=q.device) > row[:, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return result[-1][last], torch.einsum("hst,thd->shd", weights, kv[..., NOPE:])

    return Work(sets, lambda ops, copy: ops.call(MLA_PREFILL, (*sets[copy], start), scale=SCALE, value=VALUE)[0], check)


def latent_append(case: Case, source: Source, copies: int) -> Work:
    batch, capacity = case.number("batch"), case.number("capacity")
    start = torch.arange(batch, device=source.device) % capacity
    sets = [
        (source.normal(batch, capacity, LATENT + ROPE), source.normal(batch, 1, LATENT), source.normal(batch, 1, ROPE))
        for _ in range(copies)
    ]

    def check(result: Tensor) -> Pair:
        _, kv_c, k_pe = sets[0]
        slot = torch.arange(batch, device=start.device)
        return result[slot, start], torch.cat([kv_c, k_pe], dim=-1)[:, 0].float()

    return Work(sets, lambda ops, copy: ops.call(LATENT_APPEND, (*sets[copy], start))[0], check)


def routed(source: Source) -> dict[str, int | float | str]:
    """The attributes of DeepSeek-V3's router."""
    model = source.model
    groups = {"n_group": model.groups, "topk_group": model.kept_groups, "group_top": 2}
    return {"k": model.choices, **groups, "scoring": "sigmoid", "normalize": 1, "scaling": 2.5}


def route(case: Case, source: Source, copies: int) -> Work:
    experts, tokens = source.model.experts, case.number("tokens")
    sets = [
        (source.normal(tokens, experts, dtype=torch.float32), source.normal(experts, dtype=torch.float32))
        for _ in range(copies)
    ]

    def check(result: Tensor) -> Pair:
        return result, moe_route(*sets[0], **routed(source))[1]

    return Work(sets, lambda ops, copy: ops("MoERoute", sets[copy], routed(source))[1], check)


def experts(case: Case, source: Source, copies: int) -> Work:
    """The routed experts of some tokens, from activations to their weighted sum."""
    model, tokens, format_ = source.model, case.number("tokens"), case.text("format")
    fp8 = format_.startswith("fp8")
    bits = 8 if fp8 else int(format_[3:])
    shapes = [(model.experts, model.width, model.hidden)] * 2 + [(model.experts, model.hidden, model.width)]
    banks = [part for shape in shapes for part in (source.fp8(*shape) if fp8 else source.packed(bits, *shape))]
    activations = "1x128" if format_ == "fp8 1x128" else "none"
    how = {"activations": activations} if fp8 else {"bits": bits, "group": GROUP, "activations": activations}
    # The banks are larger than any cache; the tokens differ from copy to copy.
    sets = [
        (source.normal(tokens, model.hidden), ids := source.choices(tokens), source.uniform(0.1, 1, *ids.shape), *banks)
        for _ in range(copies)
    ]

    def check(result: Tensor) -> Pair:
        x, ids, weights = (tensor[:_CHECKED_TOKENS] for tensor in sets[0][:3])
        if fp8:
            return result[:_CHECKED_TOKENS], moe_experts_fp8_block(x.float(), ids, weights, *banks, activations)
        zeros = (None, None, None)
        return result[:_CHECKED_TOKENS], moe_experts_int(
            x.float(), ids, weights, *banks, *zeros, bits, GROUP, activations
        )

    hit = sum(int(each[1].unique().numel()) for each in sets) // copies
    op = "MoEExpertsFp8Block" if fp8 else "MoEExpertsInt"
    sizes = {"tokens": tokens, "k": model.choices, "experts": model.experts}
    return Work(
        sets,
        lambda ops, copy: ops(op, sets[copy], how)[0],
        check,
        slack=4.0 if activations != "none" else 1.0,
        choices=(Choice("through_experts", sizes, (16, 64)),),
        experts_hit=hit,
    )


def _parts(op: str, sizes: Mapping[str, int]) -> Choice:
    return Choice(op, sizes, (1, 2, 4, 8, 16, 32))


WORK: Mapping[str, Prepare] = {
    "fp8_gemm": fp8_gemm,
    "quantise": quantise,
    "int_gemm": int_gemm,
    "mla_decode": mla_decode,
    "mla_prefill": mla_prefill,
    "latent_append": latent_append,
    "moe_route": route,
    "moe_experts": experts,
}
"""How a case of each kernel is prepared, with so many copies of its inputs."""
