"""dsv3::MoEExpertsInt: the routed experts with 8- or 4-bit weights in groups along K."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.linear_int.op import dequantise_text, linear_int
from dsv3export.plugins.moe_experts.op import Bank, combine_text, through_experts
from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port


@torch.library.custom_op("dsv3::moe_experts_int", mutates_args=())
def moe_experts_int(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    up: Tensor,
    up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    gate_zero: Tensor | None,
    up_zero: Tensor | None,
    down_zero: Tensor | None,
    bits: int,
    group: int,
    activations: str,
) -> Tensor:
    """`moe_experts` on the float32 values of packed weights, one expert at a time.

    Args:
        x: [T, D] float32.
        ids: [T, k] int64, distinct within a row.
        weights: [T, k] float32.
        gate, up: uint8 [E, I, bytes of D]; down: uint8 [E, D, bytes of I]; packed as for `linear_int`.
        gate_scale, up_scale: float32 [E, I, groups of D]; down_scale: [E, D, groups of I].
        gate_zero, up_zero, down_zero: Packed zero points, or None for 2^(bits-1).

    Returns:
        [T, D].
    """
    banks = {
        "gate": (gate, gate_scale, gate_zero),
        "up": (up, up_scale, up_zero),
        "down": (down, down_scale, down_zero),
    }

    def project(bank: Bank, expert: int, rows: Tensor) -> Tensor:
        packed, scale, zero = banks[bank]
        expert_zero = None if zero is None else zero[expert]
        result: Tensor = linear_int(rows, packed[expert], scale[expert], expert_zero, bits, group, activations)
        return result

    return through_experts(x, ids, weights, project)


@moe_experts_int.register_fake
def _(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Tensor,
    gate_scale: Tensor,
    up: Tensor,
    up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    gate_zero: Tensor | None,
    up_zero: Tensor | None,
    down_zero: Tensor | None,
    bits: int,
    group: int,
    activations: str,
) -> Tensor:
    return torch.empty_like(x)


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: dequantise the banks, then as dsv3::MoEExperts; for looking at, not for speed."""
    zeros = "Z" in dims
    to_hidden = {"E": dims["E"], "N": dims["I"], "G": dims["G"], "K": dims["D"]}
    to_model = {"E": dims["E"], "N": dims["D"], "G": dims["H"], "K": dims["I"]}
    names = "x, ids, weights, gate_q, gate_scale, up_q, up_scale, down_q, down_scale"
    banks = [
        dequantise_text(bank, attributes, (f"{name}_q", f"{name}_scale", f"{name}_zero" if zeros else None), name)
        for name, bank in (("gate", to_hidden), ("up", to_hidden), ("down", to_model))
    ]
    return f"""
MoEExpertsInt ({names}{", gate_zero, up_zero, down_zero" if zeros else ""}) => (y) {{
{"".join(banks)}
{combine_text()}
}}
"""


def _bank(name: str, rows: str, packed: str, groups: str) -> tuple[Port, Port]:
    return Port(name, ("uint8",), ("E", rows, packed)), Port(f"{name}_scale", ("float",), ("E", rows, groups))


MOE_EXPERTS_INT = Op(
    name="MoEExpertsInt",
    torch_name="dsv3::moe_experts_int",
    doc="The routed experts of DeepSeekMoE with 8- or 4-bit weights, groups along K.",
    inputs=(
        Port("x", ("float",), ("T", "D")),
        Port("ids", ("int64",), ("T", "k")),
        Port("weights", ("float",), ("T", "k")),
        *_bank("gate", "I", "P", "G"),
        *_bank("up", "I", "P", "G"),
        *_bank("down", "D", "Q", "H"),
        Port("gate_zero", ("uint8",), ("E", "I", "Z"), optional=True),
        Port("up_zero", ("uint8",), ("E", "I", "Z"), optional=True),
        Port("down_zero", ("uint8",), ("E", "D", "Y"), optional=True),
    ),
    outputs=(Port("y", ("float",), ("T", "D")),),
    attributes=(
        Attribute("bits", "int", "8 or 4"),
        Attribute("group", "int", "neighbours along K that share a scale"),
        Attribute("activations", "string", "none, or int8: inputs are rounded to int8 in the same groups"),
    ),
    kernel=moe_experts_int,
    function=function,
)
