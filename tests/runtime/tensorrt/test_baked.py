"""Engines that hold their weights, one for each layer: real TensorRT-RTX builds them, sessions replay them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from dsv3export import Engine
from dsv3export.engine.program import MTP_PROGRAM, PHASES, PROGRAM, Program
from dsv3export.errors import BackendError, ResourceError
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.drafting import draft_logits
from dsv3export.runtime.generation import prompt_logits
from tests.e2e.goldens import Golden
from tests.support.compare import LOGITS, assert_close
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import LIMITS, RecordedEngine, emulate, recorded_engine

BAKED = replace(LIMITS, bake_weights=True)
LAYERS = ["embed", "layers.0", "layers.1", "layers.2", "layers.3", "head"]


@pytest.fixture(scope="module")
def golden(tiny_bf16: Path, goldens: Callable[[Literal["bf16", "fp8"]], Path]) -> Golden:
    return Golden("bf16", tiny_bf16, goldens("bf16"))


@pytest.fixture(scope="module")
def baked(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedEngine:
    pytest.importorskip("tensorrt_rtx_bindings")
    out = tmp_path_factory.mktemp("baked") / "engine"
    return recorded_engine(tiny_bf16, out, tensorrt=BAKED, precision="bf16", compute="fp32")


def test_each_layer_has_engines_of_its_own(baked: RecordedEngine) -> None:
    files = baked.files()
    trunk, mtp = (Program.from_json(files.graph(name)) for name in (PROGRAM, MTP_PROGRAM))
    assert [call.kind for call in trunk.calls] == LAYERS
    assert [call.kind for call in mtp.calls] == ["embed", "layers.4"]
    assert all(not kind.weights for kind in (*trunk.kinds.values(), *mtp.kinds.values()))
    engines = {f"{name}.{phase}" for name in (*LAYERS, "layers.4") for phase in PHASES}
    assert files.manifest.graphs.keys() == {PROGRAM, MTP_PROGRAM, *engines}
    # An expert layer has 1.6 million parameters of 2 bytes.
    assert all(files.manifest.graphs[f"layers.1.{phase}"].size > 3_200_000 for phase in PHASES)


def test_weights_lie_in_the_engines_and_nowhere_else(baked: RecordedEngine) -> None:
    assert (baked.files().manifest.weights, [*baked.path.rglob("*.safetensors")]) == ((), [])


def test_layers_carry_the_name_of_their_layer(baked: RecordedEngine) -> None:
    names = baked.recorder.record_of(baked.files().graph("layers.2.decode")).layers.values()
    assert names and all(name.startswith("layers.2.") for name in names)
    assert "layers.2.mlp.experts.gate_proj:constant" in names


@pytest.mark.parametrize("chunk", [2, 48])
def test_results_are_the_goldens(golden: Golden, baked: RecordedEngine, chunk: int) -> None:
    """Weights as the checkpoint has them, arithmetic in float32."""
    session = emulate(baked).session
    expected = golden.arrays("full_logits")["p3_logits"]
    assert_close(prompt_logits(session, golden.ids(3), chunk), expected, LOGITS, "prompt 3")
    known = [*golden.ids(3), golden.prompts[3]["greedy_ids"][0]]
    assert_close(draft_logits(session, known, chunk), golden.arrays("mtp")["p3_draft_logits_all"], LOGITS, "drafts")


def test_generation_with_drafts(golden: Golden, baked: RecordedEngine) -> None:
    engine = Engine(baked.files(), emulate(baked, drafts=True).session, speculate=1)
    result = engine.generate(golden.ids(3), 8, ignore_eos=True)
    assert result.token_ids == golden.prompts[3]["greedy_ids"][:8]


def test_too_little_memory_is_said_before_engines_are_loaded(baked: RecordedEngine) -> None:
    with pytest.raises(ResourceError, match=r"for engines that hold their weights, got .*without --bake-weights"):
        emulate(baked, EmulatedDriver(memory=40 << 20))


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_what_tensorrt_takes_as_inputs_only(precision: str, tiny_bf16: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"with --bake-weights on tensorrt-rtx: expected fp32, bf16 or f16"):
        build_engine(tiny_bf16, tmp_path / "engine", backend="tensorrt-rtx", precision=precision, tensorrt=BAKED)
    assert [*tmp_path.iterdir()] == []


def test_a_bank_that_is_no_constant(tiny_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT counts a constant's elements in 31 bits; DeepSeek-V3's banks have 3.8 billion."""
    monkeypatch.setattr("dsv3export.graphs.lower.tensorrt.choices._MOST_ELEMENTS", 524_287)
    with pytest.raises(BackendError, match="expected at most 524287 elements in a constant, got 524288"):
        build_engine(tiny_bf16, tmp_path / "engine", backend="tensorrt-rtx", precision="bf16", tensorrt=BAKED)
    assert [*tmp_path.iterdir()] == []
