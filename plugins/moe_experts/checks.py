"""Checks of the routed experts in every format: one token, empty experts, all tokens to one, dims around a block."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import DTYPES
from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.kernels.stored import NATIVE_E4M3
from dsv3export.plugins.moe_experts.op import moe_experts
from dsv3export.plugins.moe_experts.tensorrt import FEW, MANY, MOE_ORDER, through_experts
from dsv3export.plugins.moe_experts_fp8_block.op import moe_experts_fp8_block
from dsv3export.plugins.moe_experts_int.op import moe_experts_int

Banks = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


def _ids(random: Samples, tokens: int, experts: int, k: int, crowded: bool) -> Tensor:
    """Distinct experts for each token; with `crowded` the same for all."""
    ids = random.distinct(1 if crowded else tokens, k, experts)
    return ids.expand(tokens, k).contiguous()


def order_check(name: str, tokens: int, experts: int, k: int, block: int, crowded: bool = False) -> Check:
    """Slots and owners against a plain loop."""

    def compare(call: Call[Tensor], _: str) -> Pairs:
        ids = _ids(Samples(name), tokens, experts, k, crowded)
        slots, owners = call(MOE_ORDER, (ids,), experts=experts, block=block)
        expected_slots, expected_owners = torch.full_like(slots, -1), torch.full_like(owners, -1)
        used = 0
        for expert in range(experts):
            mine = torch.nonzero(ids.flatten() == expert).flatten()
            blocks = -(-len(mine) // block)
            expected_slots[used * block : used * block + len(mine)] = mine
            expected_owners[used : used + blocks] = expert
            used += blocks
        return [(slots, expected_slots), (owners, expected_owners)]

    return Check("MoEOrder", name, compare, dtypes=("F32",), exact=True)


def experts_check(
    name: str,
    format_: str,
    sizes: tuple[int, int, int, int, int],
    bits: int = 8,
    group: int = 32,
    activations: str = "none",
    block: int = FEW,
    crowded: bool = False,
) -> Check:
    """`sizes`: tokens, hidden, width, experts, k."""
    tokens, hidden, width, experts, k = sizes

    def banks(random: Samples, dtype: torch.dtype) -> Banks:
        made: list[tuple[Tensor, ...]] = []
        for rows, inner in ((width, hidden), (width, hidden), (hidden, width)):
            if format_ == "plain":
                made.append((random.normal(experts, rows, inner, scale=inner**-0.5).to(dtype),))
            elif format_ in ("fp8", "rounded"):
                made.append(random.fp8_blocks(experts, rows, inner))
            else:
                zero = format_ == "int with zero points"
                made.append(
                    tuple(part for part in random.packed((experts, rows), inner, bits, group, zero) if part is not None)
                )
        return made[0], made[1], made[2]

    def compare(call: Call[Tensor], dtype: str) -> Pairs:
        random = Samples(name)
        x = random.normal(tokens, hidden).to(DTYPES[dtype])
        ids, weights = _ids(random, tokens, experts, k, crowded), random.uniform(0.1, 1.0, tokens, k)
        stored = banks(random, DTYPES[dtype])
        integers: dict[str, int | str] = {"bits": bits, "group": group, "activations": activations}
        more = integers if format_.startswith("int") else {}
        y = through_experts(call, x, ids, weights, stored, format_, experts, k, block, dtype, **more)
        flat = [part for bank in stored for part in bank]
        if format_ == "plain":
            expected = moe_experts(x.float(), ids, weights, *(bank.float() for bank in flat))
        elif format_ in ("fp8", "rounded"):
            mode = "1x128" if format_ == "rounded" else "none"
            expected = moe_experts_fp8_block(x.float(), ids, weights, *flat, mode)
        else:
            numbers = [part for bank in stored for part in bank[:2]]
            zeros = [bank[2] if len(bank) == 3 else None for bank in stored]
            expected = moe_experts_int(x.float(), ids, weights, *numbers, *zeros, bits, group, activations)
        return [(y, expected)]

    # A hidden activation that was rounded to 16 bits may lie on the other side of an edge between two of 8 bits.
    tips = format_ == "rounded" or activations == "int8"
    least = NATIVE_E4M3 if format_ == "rounded" else 80
    op = {"plain": "MoEExperts", "fp8": "MoEExpertsFp8Block", "rounded": "MoEExpertsFp8Block"}
    dtypes = ("BF16", "F16", "F32")
    return Check(op.get(format_, "MoEExpertsInt"), name, compare, dtypes, least, slack=4.0 if tips else 1.0)


CHECKS = (
    order_check("one token", 1, 8, 3, 16),
    order_check("empty experts", 5, 32, 2, 16),
    order_check("all tokens to the same experts", 40, 7, 2, 16, crowded=True),
    order_check("more ids than are read at a time", 700, 6, 2, 64),
    order_check("one expert", 3, 1, 1, 16),
    experts_check("one token", "plain", (1, 32, 16, 8, 3)),
    experts_check("empty experts, odd dims", "plain", (5, 33, 17, 12, 2)),
    experts_check("all tokens to the same experts", "plain", (37, 64, 65, 5, 2), crowded=True),
    experts_check("many rows a block", "plain", (70, 48, 80, 3, 2), block=MANY),
    experts_check("fp8, one token", "fp8", (1, 128, 256, 6, 3)),
    experts_check("fp8, around a block", "fp8", (5, 127, 129, 4, 2)),
    experts_check("fp8, all tokens to one expert", "fp8", (20, 130, 64, 3, 1), crowded=True),
    experts_check("fp8, activations too, one token", "rounded", (1, 256, 128, 6, 3)),
    experts_check("fp8, activations too, around a block", "rounded", (18, 127, 129, 4, 2)),
    experts_check("int8", "int", (7, 64, 40, 6, 2)),
    experts_check("int8, zero points", "int with zero points", (3, 64, 64, 5, 2)),
    experts_check("int8, activations too", "int", (4, 64, 96, 4, 2), activations="int8"),
    experts_check("int4, one token", "int", (1, 128, 64, 8, 4), bits=4, group=64),
    experts_check(
        "int4, zero points, all tokens to one expert", "int with zero points", (17, 96, 64, 3, 1), bits=4, crowded=True
    ),
)
