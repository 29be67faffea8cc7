"""dsv3::MoEExperts: the routed experts' SwiGLU MLPs, weighted and summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import silu

from dsv3export.plugins.registry import FLOATS, Attributes, Dims, Op, Port

Bank = Literal["gate", "up", "down"]
# Rows times the transposed matrix of an expert in a bank.
Project = Callable[[Bank, int, Tensor], Tensor]


def through_experts(x: Tensor, ids: Tensor, weights: Tensor, project: Project) -> Tensor:
    """Each chosen expert's SwiGLU MLP on its tokens, one expert at a time, weighted and summed: [T, D]."""
    out = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        token, choice = torch.where(ids == expert)
        hidden = silu(project("gate", expert, x[token])) * project("up", expert, x[token])
        out.index_add_(0, token, project("down", expert, hidden) * weights[token, choice, None])
    return out


@torch.library.custom_op("dsv3::moe_experts", mutates_args=())
def moe_experts(x: Tensor, ids: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """y[t] = sum over j of weights[t, j] * down_e @ (silu(gate_e @ x[t]) * (up_e @ x[t])), e = ids[t, j].

    Args:
        x: [T, D] float.
        ids: [T, k] int64, distinct within a row.
        weights: [T, k] float32.
        gate, up: [E, I, D], the dtype of `x` or a narrower float type.
        down: [E, D, I], likewise.

    Returns:
        [T, D].
    """
    banks = {"gate": gate, "up": up, "down": down}
    return through_experts(x, ids, weights, lambda bank, expert, rows: rows @ banks[bank][expert].to(x.dtype).T)


@moe_experts.register_fake
def _(x: Tensor, ids: Tensor, weights: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return torch.empty_like(x)


def combine_text() -> str:
    """ONNX text: y from x, ids, weights and the banks gate, up, down of any float type.

    Gathers the chosen experts' weights per token and widens those: right on any ONNX Runtime, and only for small T to
    be recommended.
    """
    return """
    column = Constant <value_ints = [-1]> ()
    one = Constant <value_ints = [1]> ()
    x_rows = Unsqueeze (x, one)
    x_column = Unsqueeze (x_rows, column)
    gate_stored = Gather <axis = 0> (gate, ids)
    gate_chosen = Cast <to = 1> (gate_stored)
    up_stored = Gather <axis = 0> (up, ids)
    up_chosen = Cast <to = 1> (up_stored)
    down_stored = Gather <axis = 0> (down, ids)
    down_chosen = Cast <to = 1> (down_stored)
    gated = MatMul (gate_chosen, x_column)
    linear = MatMul (up_chosen, x_column)
    sigmoid = Sigmoid (gated)
    swish = Mul (gated, sigmoid)
    hidden = Mul (swish, linear)
    each_column = MatMul (down_chosen, hidden)
    each = Squeeze (each_column, column)
    weights_column = Unsqueeze (weights, column)
    weighted = Mul (each, weights_column)
    y = ReduceSum <keepdims = 0> (weighted, one)"""


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text."""
    return f"MoEExperts (x, ids, weights, gate, up, down) => (y) {{{combine_text()}\n}}\n"


MOE_EXPERTS = Op(
    name="MoEExperts",
    torch_name="dsv3::moe_experts",
    doc="The routed experts of DeepSeekMoE: SwiGLU MLPs of the chosen experts, weighted and summed.",
    inputs=(
        Port("x", ("float",), ("T", "D")),
        Port("ids", ("int64",), ("T", "k")),
        Port("weights", ("float",), ("T", "k")),
        Port("gate", FLOATS, ("E", "I", "D")),
        Port("up", FLOATS, ("E", "I", "D")),
        Port("down", FLOATS, ("E", "D", "I")),
    ),
    outputs=(Port("y", ("float",), ("T", "D")),),
    attributes=(),
    kernel=moe_experts,
    function=function,
)
