"""dsv3 ops on torch tensors by their kernels, with activations of any float type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dsv3export.plugins.kernels.calls import NAMES, TorchCall
from dsv3export.plugins.kernels.sizes import parts_for
from dsv3export.plugins.kernels.tuning import Tuning
from dsv3export.plugins.latent_append.tensorrt import LATENT_APPEND, LATENT_APPEND_FP8
from dsv3export.plugins.linear_fp8_block.matmul import dequantise, round_activations
from dsv3export.plugins.linear_fp8_block.tensorrt import linear_fp8_block
from dsv3export.plugins.linear_int.tensorrt import linear_int
from dsv3export.plugins.mla_attention.prefill import MLA_PREFILL
from dsv3export.plugins.mla_attention.tensorrt import attend, attend_fp8
from dsv3export.plugins.moe_experts.tensorrt import FEW, MANY, through_experts
from dsv3export.plugins.moe_route.tensorrt import MOE_ROUTE
from dsv3export.runtime.latent_cache import scale_groups

Given = Mapping[str, Any]
Results = tuple[Tensor, ...]
# A part of a sequence that is shorter costs more to add up than it gains.
_SHORTEST_PART = 128
# Heads that a program of split attention takes together.
_ROWS = 16
# New tokens of a slot from which K and V are cheaper than attention in the latent space: verifying drafts is decoding.
_PREFILL = 16


class OpKernels:
    """Computes dsv3 ops by kernels. Products with plain weights, kv_b's among them, are torch's own.

    Args:
        call: Applies plugins.
        processors: How many programs the device runs at a time at least.
        tuning: What was measured on the device.
    """

    def __init__(self, call: TorchCall, processors: int, tuning: Tuning) -> None:
        self.call, self._processors, self._tuning = call, processors, tuning
        self._widened: WeakIdKeyDictionary = WeakIdKeyDictionary()
        # The side numbers of an FP8 cache.
        self._sides: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __call__(self, op: str, inputs: Sequence[Tensor], attributes: Given) -> Results:
        """One op, by its ONNX name, with the inputs and attributes that its definition has.

        Activations come and go in the type of the first float input; a router's numbers are float32, ids int64.
        """
        return _BY_OP[op](self, inputs, attributes)

    def sequence_parts(self, slots: int, rows: int, capacity: int) -> int:
        """Into how many parts attention cuts a sequence, so that there is a program for each processor at least."""
        programs = slots * -(-rows // _ROWS)
        wanted = min(-(-2 * self._processors // programs), -(-capacity // _SHORTEST_PART))
        default = 1 << max(wanted - 1, 0).bit_length()
        return self._tuning.choice("attend", {"slots": slots, "rows": rows, "capacity": capacity}, default)

    def linear_parts(self, rows: int, columns: int, inner: int) -> int:
        """Into how many parts a product cuts K, where its output alone keeps too few processors busy."""
        default = parts_for(rows, columns, inner, self._processors)
        return self._tuning.choice("linear", {"rows": rows, "columns": columns, "inner": inner}, default)

    def expert_block(self, tokens: int, k: int, experts: int) -> int:
        """How many rows go through an expert together."""
        default = FEW if tokens * k <= FEW * experts else MANY
        return self._tuning.choice("through_experts", {"tokens": tokens, "k": k, "experts": experts}, default)

    def _linear(self, inputs: Sequence[Tensor], _: Given) -> Results:
        x, weight = inputs
        return (torch.nn.functional.linear(x, self._as(weight, x.dtype)),)

    def _linear_fp8_block(self, inputs: Sequence[Tensor], given: Given) -> Results:
        x, weight, scale = inputs
        parts = self.linear_parts(x.numel() // x.shape[-1], weight.shape[0], x.shape[-1])
        return (linear_fp8_block(self.call, x, weight, scale, given["activations"], NAMES[x.dtype], parts),)

    def _linear_int(self, inputs: Sequence[Tensor], given: Given) -> Results:
        x, qweight, scale, *zero = inputs
        zero_point = zero[0] if zero else None
        how = given["bits"], given["group"], given["activations"], NAMES[x.dtype]
        parts = self.linear_parts(x.numel() // x.shape[-1], qweight.shape[0], x.shape[-1])
        return (linear_int(self.call, x, qweight, scale, zero_point, *how, parts),)

    def _latent_append(self, inputs: Sequence[Tensor], _: Given) -> Results:
        return self.call(LATENT_APPEND, inputs)

    def _latent_append_half(self, inputs: Sequence[Tensor], _: Given) -> Results:
        """The kernel saturates by the cache's type; attention reads the cache where it is."""
        (updated,) = self.call(LATENT_APPEND, inputs)
        return updated, updated.to(inputs[1].dtype)

    def _latent_append_fp8(self, inputs: Sequence[Tensor], _: Given) -> Results:
        """Attention reads both arrays where they are: in place of the latents the cache itself is handed on."""
        cache, side = self.call(LATENT_APPEND_FP8, inputs)
        self._sides[cache] = side
        return cache, side, cache

    def _mla_attention(self, inputs: Sequence[Tensor], given: Given) -> Results:
        q_nope, q_pe, cache, kv_b, start = inputs
        w_uk, w_uv = self._up_projections(self._as(kv_b, q_nope.dtype), q_nope)
        return self._attention(q_nope, q_pe, cache, w_uk, w_uv, start, given)

    def _mla_attention_int(self, inputs: Sequence[Tensor], given: Given) -> Results:
        q_nope, q_pe, cache, w_uk, w_uk_scale, w_uv, w_uv_scale, start = inputs
        keys = self._kept(w_uk, q_nope.dtype, lambda: w_uk.float() * w_uk_scale)
        values = self._kept(w_uv, q_nope.dtype, lambda: (w_uv.float() * w_uv_scale).transpose(1, 2))
        return self._attention(q_nope, q_pe, cache, keys, values, start, given)

    def _mla_attention_fp8_block(self, inputs: Sequence[Tensor], given: Given) -> Results:
        q_nope, q_pe, cache, kv_b, kv_b_scale, start = inputs
        if given["activations"] == "1x128":
            latent = kv_b.shape[1]
            cache = self._latents(cache)
            rounded = round_activations(cache[..., :latent].float()).to(cache.dtype)
            cache = torch.cat([rounded, cache[..., latent:]], dim=-1)
        weight = self._kept(kv_b, q_nope.dtype, lambda: dequantise(kv_b, kv_b_scale))
        w_uk, w_uv = self._up_projections(weight, q_nope)
        return self._attention(q_nope, q_pe, cache, w_uk, w_uv, start, given)

    def _latents(self, cache: Tensor) -> Tensor:
        """What an FP8 cache holds, as float32 [B, T, Dc+Dr]; another cache as it is."""
        if cache not in self._sides:
            return cache
        side = self._sides[cache].float()
        groups = scale_groups(cache.shape[2])
        scale = side[..., -groups:, None]
        latent = (cache.float().unflatten(-1, (groups, -1)) * scale).flatten(-2)
        return torch.cat([latent, side[..., :-groups]], dim=-1)

    def _up_projections(self, kv_b: Tensor, q_nope: Tensor) -> tuple[Tensor, Tensor]:
        heads, nope = q_nope.shape[2:]
        per_head = kv_b.unflatten(0, (heads, -1))
        return per_head[:, :nope], per_head[:, nope:]

    def _attention(
        self, q_nope: Tensor, q_pe: Tensor, cache: Tensor, w_uk: Tensor, w_uv: Tensor, start: Tensor, given: Given
    ) -> Results:
        """In the latent space: w_uk [H, Dn, Dc] into the query, w_uv [H, Dv, Dc] out of the result."""
        slots, queries, heads, _ = q_nope.shape
        if queries >= _PREFILL and cache not in self._sides:
            return self._prefill(q_nope, q_pe, cache, w_uk, w_uv, start, given)
        parts = self.sequence_parts(slots, queries * heads, cache.shape[1])
        q, how = torch.einsum("bshd,hdc->bshc", q_nope, w_uk), (start, given["scale"], parts, NAMES[q_nope.dtype])
        if cache in self._sides:
            mixed = attend_fp8(self.call, q, q_pe, cache, self._sides[cache], *how)
        else:
            mixed = attend(self.call, q, q_pe, cache, *how)
        return (torch.einsum("bshc,hdc->bshd", mixed, w_uv).flatten(2),)

    def _prefill(
        self, q_nope: Tensor, q_pe: Tensor, cache: Tensor, w_uk: Tensor, w_uv: Tensor, start: Tensor, given: Given
    ) -> Results:
        """With K and V of the whole capacity, so that nothing waits to learn how long the longest slot is."""
        latent = cache[..., : w_uk.shape[2]].to(q_nope.dtype)
        kv = torch.einsum("btc,hdc->bthd", latent, torch.cat([w_uk, w_uv], dim=1))
        (out,) = self.call(MLA_PREFILL, (q_nope, q_pe, kv, cache, start), scale=given["scale"], value=w_uv.shape[1])
        return (out.flatten(2),)

    def _moe_route(self, inputs: Sequence[Tensor], given: Given) -> Results:
        ids, weights = self.call(MOE_ROUTE, [each.float() for each in inputs], **given)
        return ids.long(), weights

    def _moe_experts(self, inputs: Sequence[Tensor], given: Given) -> Results:
        dtype = inputs[0].dtype
        return self._experts(inputs[:3], [(self._as(bank, dtype),) for bank in inputs[3:]], "plain", given)

    def _moe_experts_fp8_block(self, inputs: Sequence[Tensor], given: Given) -> Results:
        format_ = "rounded" if given["activations"] == "1x128" else "fp8"
        return self._experts(inputs[:3], [inputs[place : place + 2] for place in (3, 5, 7)], format_, {})

    def _moe_experts_int(self, inputs: Sequence[Tensor], given: Given) -> Results:
        zeros = inputs[9:]
        banks = [(*inputs[3 + 2 * place : 5 + 2 * place], *zeros[place : place + 1]) for place in range(3)]
        return self._experts(inputs[:3], banks, "int with zero points" if zeros else "int", given)

    def _experts(
        self, first: Sequence[Tensor], banks: Sequence[Sequence[Tensor]], format_: str, given: Given
    ) -> Results:
        x, ids, weights = first
        (tokens, k), experts = ids.shape, banks[0][0].shape[0]
        block = self.expert_block(tokens, k, experts)
        three = banks[0], banks[1], banks[2]
        y = through_experts(
            self.call, x, ids, weights.float(), three, format_, experts, k, block, NAMES[x.dtype], **given
        )
        return (y,)

    def _as(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight if weight.dtype == dtype else self._kept(weight, dtype, lambda: weight)

    def _kept(self, weight: Tensor, dtype: torch.dtype, widen: Callable[[], Tensor]) -> Tensor:
        """What is made of a weight, for as long as the weight is there."""
        made: dict[torch.dtype, Tensor] = self._widened.setdefault(weight, {})
        if dtype not in made:
            made[dtype] = widen().to(dtype)
        return made[dtype]


_Method = Callable[[OpKernels, Sequence[Tensor], Given], Results]
_BY_OP: dict[str, _Method] = {
    "Linear": OpKernels._linear,
    "LinearFp8Block": OpKernels._linear_fp8_block,
    "LinearInt": OpKernels._linear_int,
    "LatentAppend": OpKernels._latent_append,
    "LatentAppendHalf": OpKernels._latent_append_half,
    "LatentAppendFp8": OpKernels._latent_append_fp8,
    "MlaAttention": OpKernels._mla_attention,
    "MlaAttentionInt": OpKernels._mla_attention_int,
    "MlaAttentionFp8Block": OpKernels._mla_attention_fp8_block,
    "MoERoute": OpKernels._moe_route,
    "MoEExperts": OpKernels._moe_experts,
    "MoEExpertsInt": OpKernels._moe_experts_int,
    "MoEExpertsFp8Block": OpKernels._moe_experts_fp8_block,
}
