"""What memory the calibration of each layer takes, from shapes alone: an upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import onnx_ir as ir

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import is_bank
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.values import is_weight
from dsv3export.plugins import DOMAIN

_FLOAT = 4
# Hidden states of all sequences that live at once: before a layer, after it, and the inputs of its experts, gathered.
_HIDDEN_STATES = 4
# Copies of the attention's scores, and of the queries, keys, values and MLP activations, of one sequence.
_COPIES = 4


class CallMemory(NamedTuple):
    """Bytes of one call of the main graph: what stays for its weights' sake, and what running it takes in all."""

    held: int
    passing: int


def call_memory(model: ir.Model, checkpoint: Checkpoint, lengths: Sequence[int]) -> list[CallMemory]:
    """For each call, given the sequences' lengths in tokens."""
    hidden = _FLOAT * _HIDDEN_STATES * sum(lengths) * checkpoint.config.hidden_size
    activations = _FLOAT * _activations(checkpoint, max(lengths))
    needs = []
    for call in model.graph:
        function = model.functions[(KIND_DOMAIN, call.op_type, "")]
        weights = 0
        for value in call.inputs:
            if value is not None and is_weight(value):
                shape = [int(dim) for dim in dims_of(value)]
                weights += prod(shape[1:] if is_bank(str(value.name)) else shape)
        # The sum and the mean of each input, and the experts' mean over all tokens.
        held = hidden + _FLOAT * 2 * sum(width**2 for width in _input_widths(function))
        needs.append(CallMemory(held, held + activations + 2 * _FLOAT * weights))
    return needs


def _input_widths(function: ir.Function) -> list[int]:
    """K of each value that linears or experts are given, each value once."""
    widths: dict[ir.Value, int] = {}
    for node in function:
        if node.domain == DOMAIN and node.op_type in ("Linear", "MoEExperts") and node.inputs[0] is not None:
            weight = next(value for value in node.inputs if value is not None and is_weight(value))
            widths[node.inputs[0]] = int(dims_of(weight)[-1])
    return list(widths.values())


def _activations(checkpoint: Checkpoint, tokens: int) -> int:
    """Numbers that a sequence has in a layer or in the head, at most."""
    config = checkpoint.config
    heads = config.num_attention_heads * (2 * config.qk_head_dim + 2 * config.v_head_dim + tokens)
    mlp = max(config.intermediate_size, config.moe_intermediate_size * (config.n_shared_experts or 1))
    return tokens * max(_COPIES * (heads + mlp + 2 * config.hidden_size), 2 * config.vocab_size)
