"""Programs that are wrong on purpose: each is caught by the comparison that the right ones pass.

Most of them leave most greedy tokens as they are (see goldens/*/sensitivity.json), so tokens alone prove little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs import Executor, graph_for
from dsv3export.plugins import OPS
from dsv3export.plugins.moe_route.op import moe_route
from tests.e2e.goldens import Golden
from tests.support.compare import LOGITS, assert_close

Wrong = Callable[[pytest.MonkeyPatch, Golden], None]
PROMPTS = (3, 4, 5)


def trace_with(op_type: str, **attributes: Any) -> Wrong:
    """A graph in which every node of an op has other attributes."""

    def apply(patch: pytest.MonkeyPatch, golden: Golden) -> None:
        patch.setattr("dsv3export.graphs.executor.graph_for", lambda *a: _altered(graph_for(*a), op_type, attributes))

    return apply


def _altered(model: ir.Model, op_type: str, attributes: Mapping[str, Any]) -> ir.Model:
    found = [node for function in model.functions.values() for node in function if node.op_type == op_type]
    assert found
    for node in found:
        for name, value in attributes.items():
            assert name in node.attributes
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return model


def no_mscale(patch: pytest.MonkeyPatch, golden: Golden) -> None:
    config = Checkpoint.open(golden.checkpoint).config
    trace_with("MlaAttention", scale=config.qk_head_dim**-0.5)(patch, golden)


def biased_weights(patch: pytest.MonkeyPatch, golden: Golden) -> None:
    """The bias also weighs: weights from the biased scores."""

    def kernel(logits: torch.Tensor, bias: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids, _ = moe_route(logits, bias, *rest)
        weights = (logits.sigmoid() + bias).gather(1, ids)
        return ids, weights / weights.sum(dim=1, keepdim=True) * rest[-1]

    patch.setitem(OPS, "MoERoute", dataclasses.replace(OPS["MoERoute"], kernel=kernel))


def ignored_bias(patch: pytest.MonkeyPatch, golden: Golden) -> None:
    def kernel(logits: torch.Tensor, bias: torch.Tensor, *rest: Any) -> Any:
        return moe_route(logits, torch.zeros_like(bias), *rest)

    patch.setitem(OPS, "MoERoute", dataclasses.replace(OPS["MoERoute"], kernel=kernel))


def unscaled_frequencies(patch: pytest.MonkeyPatch, golden: Golden) -> None:
    config = Checkpoint.open(golden.checkpoint).config
    dims = np.arange(0, config.qk_rope_head_dim, 2)
    plain = (config.rope_theta ** (-dims / config.qk_rope_head_dim)).astype(np.float32)
    patch.setattr("dsv3export.checkpoint.model_weights.inverse_frequencies", lambda _: plain)


def acausal_attention(patch: pytest.MonkeyPatch, golden: Golden) -> None:
    """Every token sees one position too many."""
    right = OPS["MlaAttention"].kernel

    def kernel(q_nope: Any, q_pe: Any, cache: Any, kv_b: Any, start: Any, scale: float) -> Any:
        longer = torch.cat([cache, cache[:, -1:]], dim=1)
        rows = torch.arange(q_nope.shape[1])
        each = [
            right(q_nope[:, s : s + 1], q_pe[:, s : s + 1], longer, kv_b, start + s + 1, scale) for s in rows.tolist()
        ]
        return torch.cat(each, dim=1)

    patch.setitem(OPS, "MlaAttention", dataclasses.replace(OPS["MlaAttention"], kernel=kernel))


WRONG: dict[str, Wrong] = {
    "softmax scale without mscale squared": no_mscale,
    "rotary pairs half a head apart": trace_with("RotaryEmbedding", interleaved=0),
    "frequencies not stretched by YaRN": unscaled_frequencies,
    "weights from biased scores": biased_weights,
    "selection without the bias": ignored_bias,
    "weights not renormalised": trace_with("MoERoute", normalize=0),
    "group mask ignored": trace_with("MoERoute", n_group=1, topk_group=1),
    "group score of one best instead of two": trace_with("MoERoute", group_top=1),
    "softmax instead of sigmoid": trace_with("MoERoute", scoring="softmax"),
    "routed_scaling_factor left out": trace_with("MoERoute", scaling=1.0),
    "attention sees one position ahead": acausal_attention,
    "another epsilon in the norms": trace_with("RMSNormalization", epsilon=1e-2),
}


def check(golden: Golden) -> None:
    executor, expected = Executor.from_checkpoint(golden.checkpoint), golden.arrays("full_logits")
    for prompt in PROMPTS:
        assert_close(executor.logits(golden.ids(prompt)), expected[f"p{prompt}_logits"], LOGITS, f"prompt {prompt}")


@pytest.mark.parametrize("name", WRONG)
def test_is_caught(name: str, bf16_golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    WRONG[name](monkeypatch, bf16_golden)
    with pytest.raises(AssertionError, match=r"prompt \d\[.*differ by more"):
        check(bf16_golden)


def test_the_right_program_passes_the_same_check(bf16_golden: Golden) -> None:
    check(bf16_golden)


def test_wrong_block_rows_are_caught(fp8_golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of rows // scale_rows: 80 instead of 128 for the 160 rows of kv_a_proj_with_mqa."""

    def wrong(weight: Any, scale: Any, block: tuple[int, int]) -> Any:
        rows = np.repeat(scale, weight.shape[0] // scale.shape[0], axis=0)
        each = np.repeat(rows, block[1], axis=1)[:, : weight.shape[1]]
        return weight.astype(np.float32) * each

    monkeypatch.setattr("dsv3export.checkpoint.checkpoint.dequantize", wrong)
    with pytest.raises(AssertionError, match="differ by more"):
        check(fp8_golden)


def test_swapped_mtp_input_is_caught(bf16_golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """eh_proj takes the embedding first."""

    def swapped(*arguments: Any) -> ir.Model:
        model = graph_for(*arguments)
        for function in model.functions.values():
            for node in function:
                if node.op_type == "Concat":
                    first, second = node.inputs
                    node.replace_input_with(0, second)
                    node.replace_input_with(1, first)
        return model

    monkeypatch.setattr("dsv3export.graphs.executor.graph_for", swapped)
    drafts = Executor.from_checkpoint(bf16_golden.checkpoint).draft_logits(
        [*bf16_golden.ids(3), bf16_golden.prompts[3]["greedy_ids"][0]]
    )
    with pytest.raises(AssertionError, match="differ by more"):
        assert_close(drafts, bf16_golden.arrays("mtp")["p3_draft_logits_all"], LOGITS, "drafts")
