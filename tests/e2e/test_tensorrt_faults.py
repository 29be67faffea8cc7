"""Rows and weights that are wrong on purpose, each in one place, fail the comparison that right ones pass.

Both phases are compared, since each has networks of its own; a fault must be seen in either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from dsv3export.engine.program import Phase
from dsv3export.graphs import Executor
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows import NATIVE_ROWS
from dsv3export.plugins.registry import DOMAIN
from tests.e2e.goldens import Array, Golden
from tests.support.compare import LOGITS, assert_close

Inputs = list[Any]
Alter = Callable[[Emitter, ir.Node, Inputs], Inputs]
PROMPT, TOKENS, CHUNKS = 3, 12, {"decode": 2, "prefill": 256}


def _inputs(op: str, alter: Alter, domain: str = DOMAIN) -> Mapping[Key, Row]:
    """The op's row, given other inputs."""
    row = NATIVE_ROWS[domain, op]

    def emit(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor | None]) -> Sequence[ITensor]:
        return row.emit(emitter, node, alter(emitter, node, list(inputs)))

    return {(domain, op): replace(row, emit=emit)}


def _attribute(op: str, name: str, value: float) -> Mapping[Key, Row]:
    """The op's row, for a node with another attribute."""
    row = NATIVE_ROWS[DOMAIN, op]

    def emit(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor | None]) -> Sequence[ITensor]:
        right = node.attributes[name]
        node.attributes[name] = ir.Attr(name, right.type, value)
        try:
            return row.emit(emitter, node, inputs)
        finally:
            node.attributes[name] = right

    return {(DOMAIN, op): replace(row, emit=emit)}


def _bias_in_weights() -> Mapping[Key, Row]:
    """Weights are taken of what is chosen by, the scores with the bias, and not of the scores."""
    row = NATIVE_ROWS[DOMAIN, "MoERoute"]

    def emit(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor | None]) -> Sequence[ITensor]:
        chosen_by: list[ITensor] = []
        topk, gather = emitter.topk, emitter.gather_elements

        def remembering(x: ITensor, count: int, axis: int) -> tuple[ITensor, ITensor]:
            chosen_by.append(x)
            return topk(x, count, axis)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(emitter, "topk", remembering)
            patch.setattr(emitter, "gather_elements", lambda _, places, axis: gather(chosen_by[-1], places, axis))
            return row.emit(emitter, node, inputs)

    return {(DOMAIN, "MoERoute"): replace(row, emit=emit)}


def _later(port: int) -> Alter:
    """The first token's position, `start`, is one too many."""

    def alter(emitter: Emitter, _: ir.Node, inputs: Inputs) -> Inputs:
        inputs[port] = emitter.add(inputs[port], emitter.constant([1]))
        return inputs

    return alter


def _swapped(first: int, second: int) -> Alter:
    def alter(_: Emitter, __: ir.Node, inputs: Inputs) -> Inputs:
        inputs[first], inputs[second] = inputs[second], inputs[first]
        return inputs

    return alter


def _times(port: int, factor: float) -> Alter:
    def alter(emitter: Emitter, _: ir.Node, inputs: Inputs) -> Inputs:
        shape = [1] * len(inputs[port].shape)
        inputs[port] = emitter.mul(inputs[port], emitter.constant(np.full(shape, factor, np.float32)))
        return inputs

    return alter


def _halves(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Inputs:
    """Pairs of the rotary embedding are (x[i], x[i + Dr / 2])."""
    x, heads = inputs[0], int(node.attributes["num_heads"].value)
    slots, tokens, width = (emitter.dim(x, axis) for axis in range(3))
    split = emitter.reshape(x, [slots, tokens, heads, 2, width // heads // 2])
    inputs[0] = emitter.reshape(emitter.transpose(split, [0, 1, 2, 4, 3]), [slots, tokens, width])
    return inputs


def _weights_backwards(emitter: Emitter, _: ir.Node, inputs: Inputs) -> Inputs:
    """Each expert is weighed as another of the token's was to be."""
    weights = inputs[2]
    count = int(weights.shape[1])
    inputs[2] = emitter.slice(weights, [0, count - 1], [emitter.dim(weights, 0), count], [1, -1])
    return inputs


def _ones(emitter: Emitter, _: ir.Node, inputs: Inputs) -> Inputs:
    inputs[1] = emitter.constant(np.ones(tuple(inputs[1].shape), np.float32))
    return inputs


ROWS: Mapping[str, Callable[[Golden], Mapping[Key, Row]]] = {
    "softmax scale without YaRN's mscale": lambda golden: _attribute("MlaAttention", "scale", _plain_scale(golden)),
    "bias in the router's weights": lambda golden: _bias_in_weights(),
    "group limit ignored": lambda golden: _attribute("MoERoute", "n_group", 1),
    "a group's score is its best expert's": lambda golden: _attribute("MoERoute", "group_top", 1),
    "weights not normalised": lambda golden: _attribute("MoERoute", "normalize", 0),
    "routed scaling factor left out": lambda golden: _attribute("MoERoute", "scaling", 1.0),
    "cache written one row late": lambda golden: _inputs("LatentAppend", _later(3)),
    "rotary part of the key not cached": lambda golden: _inputs("LatentAppend", _times(2, 0.0)),
    "a token sees its successor": lambda golden: _inputs("MlaAttention", _later(4)),
    "gate and up exchanged": lambda golden: _inputs("MoEExperts", _swapped(3, 4)),
    "experts' weights backwards": lambda golden: _inputs("MoEExperts", _weights_backwards),
    "rotary pairs are halves": lambda golden: _inputs("RotaryEmbedding", _halves, ""),
    "rotated the other way": lambda golden: _inputs("RotaryEmbedding", _times(2, -1.0), ""),
    "a norm's weight left out": lambda golden: _inputs("RMSNormalization", _ones, ""),
}


def _plain_scale(golden: Golden) -> float:
    config = Executor.from_checkpoint(golden.checkpoint).config
    return float((config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5)


@pytest.mark.parametrize("phase", CHUNKS)
@pytest.mark.parametrize("fault", ROWS)
def test_a_wrong_row_fails(fault: str, phase: Phase, bf16_golden: Golden, replayed_rtx: Callable[..., Any]) -> None:
    replayed = replayed_rtx("bf16", "bf16", "fp32").altered(phase, ROWS[fault](bf16_golden))
    _must_fail(replayed.logits(bf16_golden.ids(PROMPT)[:TOKENS], CHUNKS[phase]), _golden(bf16_golden), fault)


@pytest.mark.parametrize("phase", CHUNKS)
def test_the_right_rows_defined_anew_do_not_fail(
    phase: Phase, bf16_golden: Golden, replayed_rtx: Callable[..., Any]
) -> None:
    """So what fails above is the fault, not the way it is put in."""
    rows = {
        **_inputs("LatentAppend", lambda _, __, inputs: inputs),
        **_inputs("MoEExperts", lambda _, __, inputs: inputs),
    }
    replayed = replayed_rtx("bf16", "bf16", "fp32").altered(phase, rows)
    assert_close(replayed.logits(bf16_golden.ids(PROMPT)[:TOKENS], CHUNKS[phase]), _golden(bf16_golden), LOGITS)


def _nibbles(packed: Tensor) -> Tensor:
    return packed >> 4 | packed << 4


def _rolled_scales(bank: Tensor) -> Tensor:
    return bank.roll(1, 0) if bank.dtype == torch.float32 else bank


# Engine, part of the weights' names, and what is done to each of them.
WEIGHTS: Mapping[str, tuple[tuple[str, str], str, Callable[[Tensor], Tensor]]] = {
    "scale blocks transposed": (("fp8", "fp8"), "scale", lambda scale: scale.mT.reshape(scale.shape)),
    "scales of the next block": (("fp8", "fp8"), "scale", lambda scale: scale.roll(1, -1)),
    "an expert's scales are its neighbour's": (("fp8", "fp8"), "experts", _rolled_scales),
    "nibbles of projections exchanged": (("bf16", "int4"), "signed", _nibbles),
    "scales of the next group": (("bf16", "int4"), "scale", lambda scale: scale.roll(1, -1)),
}


@pytest.mark.parametrize("phase", CHUNKS)
@pytest.mark.parametrize("fault", WEIGHTS)
def test_a_wrong_weight_fails(
    fault: str, phase: Phase, request: pytest.FixtureRequest, replayed_rtx: Callable[..., Any]
) -> None:
    (variant, precision), part, wrong = WEIGHTS[fault]
    golden: Golden = request.getfixturevalue(f"{variant}_golden")
    right = replayed_rtx(variant, precision, "fp32")
    weights = {name: wrong(weight) for name, weight in right.weights.items() if part in name}
    assert any(not torch.equal(_bytes(weights[name]), _bytes(right.weights[name])) for name in weights)
    executor = Executor.from_checkpoint(golden.checkpoint, recipe=right.files.manifest.recipe)
    actual = right.altered(phase, weights=weights).logits(golden.ids(PROMPT)[:TOKENS], CHUNKS[phase])
    _must_fail(actual, executor.logits(golden.ids(PROMPT)[:TOKENS]), fault)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _golden(golden: Golden) -> Array:
    return golden.arrays("full_logits")[f"p{PROMPT}_logits"][:TOKENS]


def _must_fail(actual: Array, expected: Array, fault: str) -> None:
    assert np.isfinite(actual).all()
    with pytest.raises(AssertionError, match="differ by more than"):
        assert_close(actual, expected, LOGITS, fault)
