"""TensorRT-RTX engines layer by layer, replayed: right ones pass, and of wrong ones the layer and the op are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.compare import diff_layers
from dsv3export.compare.layers import LayerDiff
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError, EngineError, RequestError
from dsv3export.graphs.capture import ExecutorStages, engine_stages
from dsv3export.graphs.lower.tensorrt import kinds
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows import NATIVE_ROWS
from tests.e2e.goldens import Golden
from tests.e2e.test_tensorrt_faults import ROWS
from tests.support.command_line import assert_refused, run_here

Recorded = Callable[..., Any]
PROMPTS = [[0, 5, 7, 100, 33, 21, 8, 900, 12, 13]]
SAME, NARROW = 1e-4, 5e-2
# Fault of `test_tensorrt_faults` -> the first value that is wrong.
FIRST = {
    "softmax scale without YaRN's mscale": "layers.0.self_attn.mla_attention",
    "bias in the router's weights": "layers.1.mlp.gate.weights",
    "group limit ignored": "layers.1.mlp.gate.ids",
    "routed scaling factor left out": "layers.1.mlp.gate.weights",
    "cache written one row late": "layers.0.self_attn.latent_append",
    "a token sees its successor": "layers.0.self_attn.mla_attention",
    "gate and up exchanged": "layers.1.mlp.experts",
    "rotary pairs are halves": "layers.0.self_attn.rotary_embedding",
    "a norm's weight left out": "layers.0.input_layernorm",
}


def diff(files: EngineFiles, chunk: int | None, tolerance: float) -> LayerDiff:
    checkpoint = Checkpoint.open(Path(files.manifest.checkpoint.path))
    executor = ExecutorStages(checkpoint, PROMPTS, files.manifest.recipe)
    return diff_layers(executor, engine_stages(files, PROMPTS, replay=True, chunk=chunk), len(PROMPTS), tolerance)


@pytest.mark.parametrize(
    ("engine", "chunk", "tolerance"),
    [
        (("bf16", "fp32"), None, SAME),
        (("bf16", "fp32"), 2, SAME),
        (("fp8", "fp8"), 4, NARROW),
        (("bf16", "int4"), None, NARROW),
        (("bf16", "int8"), 2, NARROW),
    ],
)
def test_a_right_engine_has_no_fault(
    engine: tuple[str, str], chunk: int | None, tolerance: float, recorded_rtx: Recorded
) -> None:
    """Chunks of two tokens go through the networks for decoding."""
    found = diff(EngineFiles.open(recorded_rtx(*engine).path), chunk, tolerance)
    assert found.first_fault is None
    assert 0 < max(value.injected.worst_row for value in found.values) < tolerance / 2
    assert (found.only_expected, found.only_got) == ((), ())
    assert len(found.caches) == 5 and found.drafts is not None
    assert found.logits.top1 >= 0.9


@pytest.mark.parametrize("fault", FIRST)
def test_a_wrong_row_is_named(
    fault: str, bf16_golden: Golden, recorded_rtx: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Mapping[Key, Row] = {**NATIVE_ROWS, **ROWS[fault](bf16_golden)}
    monkeypatch.setattr(kinds, "rows_for", lambda flavour: rows)
    first = diff(EngineFiles.open(recorded_rtx("bf16", "fp32").path), None, SAME).first_fault
    assert first is not None
    assert first.name == FIRST[fault]
    assert first.expected != first.got


def test_a_wrong_weight_is_named(recorded_rtx: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    files, right = EngineFiles.open(recorded_rtx("bf16", "int4").path), EngineFiles.weight

    def wrong(self: EngineFiles, name: str) -> Any:
        array = right(self, name)
        if "layers.2.mlp.experts" not in name or "scale" in name or "down" not in name:
            return array
        packed = torch.from_numpy(np.array(array))
        return (packed >> 4 | packed << 4).numpy()

    monkeypatch.setattr(EngineFiles, "weight", wrong)
    first = diff(files, None, NARROW).first_fault
    assert first is not None
    assert first.name == "layers.2.mlp.experts"


def test_an_engine_of_another_version_is_refused(recorded_rtx: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its networks have other inputs than this version's."""
    other = kinds.kind_of

    def renamed(emitter: Any) -> Any:
        emitter.weights.pop()
        return other(emitter)

    monkeypatch.setattr(kinds, "kind_of", renamed)
    with pytest.raises(EngineError, match="the tensors that this version of dsv3export builds"):
        diff(EngineFiles.open(recorded_rtx("bf16", "fp32").path), None, SAME)


def test_what_an_engine_does_not_take(recorded_rtx: Recorded) -> None:
    files = EngineFiles.open(recorded_rtx("bf16", "fp32").path)
    with pytest.raises(RequestError, match="--chunk: expected at most 256 tokens, got 500"):
        engine_stages(files, PROMPTS, replay=True, chunk=500)
    with pytest.raises(RequestError, match="prompts: expected at most"):
        engine_stages(files, [[0] * 100_000], replay=True)


def test_full_tensorrt_is_not_replayed(recorded_rtx: Recorded) -> None:
    files = EngineFiles.open(recorded_rtx("bf16", "fp32").path)
    files.manifest = replace(files.manifest, backend=replace(files.manifest.backend, name="tensorrt"))
    with pytest.raises(BackendError, match="Plugins are not replayed"):
        engine_stages(files, PROMPTS, replay=True)


def test_the_command(tiny_bf16: Path, recorded_rtx: Recorded, tmp_path: Path) -> None:
    engine, prompts, result = recorded_rtx("bf16", "int4").path, tmp_path / "prompts.txt", tmp_path / "diff.json"
    prompts.write_text("[0, 5, 7]\n", encoding="utf-8")
    outcome = run_here("diff", tiny_bf16, engine, "--prompts", prompts, "--replay", "--json", result, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert "TensorRT-RTX, replayed, int4" in outcome.out and "none beyond 0.05" in outcome.out
    result.unlink()
    outcome = run_here("diff", tiny_bf16, tiny_bf16, "--prompts", prompts, "--replay")
    assert_refused(outcome, ("--replay", "a TensorRT engine"), tmp_path)
