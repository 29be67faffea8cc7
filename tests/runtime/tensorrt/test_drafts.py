"""The MTP layer of TensorRT-RTX engines on an emulated device: goldens, speculation, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dsv3export import Engine
from dsv3export.engine.program import Call, Program
from dsv3export.errors import RequestError, ResourceError
from dsv3export.graphs import Executor
from dsv3export.runtime.drafting import draft_logits
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.tensorrt.session import TensorRTSession
from tests.e2e.goldens import Golden
from tests.support.compare import LOGITS, assert_close
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import LIMITS, Emulation, RecordedEngine, emulate, recorded_engine

NORMS = {"enorm.weight": "hnorm.weight", "hnorm.weight": "enorm.weight"}


@pytest.fixture(scope="module")
def golden(tiny_bf16: Path, goldens: Callable[[Literal["bf16", "fp8"]], Path]) -> Golden:
    return Golden("bf16", tiny_bf16, goldens("bf16"))


def known(golden: Golden, prompt: int) -> list[int]:
    return [*golden.ids(prompt), golden.prompts[prompt]["greedy_ids"][0]]


@pytest.mark.parametrize("chunk", [2, 48])
def test_drafts_are_the_goldens(golden: Golden, emulation: Emulation, chunk: int) -> None:
    """Chunks that decode engines take, and that prefill engines take."""
    expected = golden.arrays("mtp")
    drafts = draft_logits(emulation.session, known(golden, 3), chunk)
    assert_close(drafts, expected["p3_draft_logits_all"], LOGITS, "prompt 3")
    last = draft_logits(emulation.session, known(golden, 4), chunk)[-1]
    assert_close(last, expected["draft_last_logits"][4], LOGITS, "prompt 4")


def test_drafts_of_fp8_weights_are_the_executors(
    goldens: Callable[[Literal["bf16", "fp8"]], Path], recorded_fp8: RecordedEngine, tiny_fp8: Path
) -> None:
    golden = Golden("fp8", tiny_fp8, goldens("fp8"))
    executor = Executor.from_checkpoint(tiny_fp8, recipe=recorded_fp8.files().manifest.recipe)
    drafts = draft_logits(emulate(recorded_fp8).session, golden.ids(3), 48)
    assert_close(drafts, executor.draft_logits(golden.ids(3)), LOGITS)


@pytest.mark.parametrize("count", [1, 2])
def test_speculation_continues_as_the_goldens(golden: Golden, recorded: RecordedEngine, count: int) -> None:
    """The trunk verifies one draft in its decode engines, which were built for that, and two in those for prefill."""
    session = emulate(recorded, drafts=True).session
    engine = Engine(recorded.files(), session, speculate=count)
    results = engine.generate([golden.ids(prompt) for prompt in (2, 3, 4)], 12, ignore_eos=True)
    assert [each.token_ids for each in results] == [golden.prompts[p]["greedy_ids"][:12] for p in (2, 3, 4)]
    assert 0 < engine.speculation.accepted < engine.speculation.drafted
    assert session.graphs.captured == (1 if count == 1 else 0)


def test_a_sequence_may_fill_what_the_engine_was_built_for(golden: Golden, recorded: RecordedEngine) -> None:
    """Drafts are written behind the last token: there is room for them."""
    engine = Engine(recorded.files(), emulate(recorded, drafts=True).session, speculate=1)
    assert engine.limits.context == (LIMITS.max_length or 0) - 1
    assert engine.limits.context_name == "what the engine was built for, less 1 for drafts"
    prompt = golden.ids(5)[:1] * (engine.limits.context - 3)
    alone = Engine(recorded.files(), emulate(recorded).session).generate(prompt, 3, ignore_eos=True)
    assert engine.generate(prompt, 3, ignore_eos=True).token_ids == alone.token_ids
    with pytest.raises(RequestError, match="less 1 for drafts"):
        engine.generate(prompt, 4)


def test_drafts_of_more_rows_than_there_is_room_for(golden: Golden, emulation: Emulation) -> None:
    session, ids = emulation.session, np.array([golden.ids(5)[:41]] * 2)
    caches = [LatentCache(layout, 2, 40) for layout in (session.cache_layout, session.draft_cache_layout)]
    start, slots, rows = np.zeros(2, np.int64), range(2), np.arange(80)
    _, hidden = session.step_hidden(ids[:, :40], start, caches[0], slots, rows[:0])
    drafts, _ = session.draft(hidden, ids[:, 1:], start, caches[1], slots, rows)
    expected = draft_logits(session, golden.ids(5)[:41], 48)
    assert_close(drafts, np.concatenate([expected] * 2), LOGITS)


def test_norms_in_each_others_place_are_seen(
    golden: Golden, recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Program.from_json

    def swapped(call: Call) -> Call:
        weights = {port: call.weights[NORMS.get(port, port)] for port in call.weights}
        return replace(call, weights=weights)

    def altered(data: bytes) -> Program:
        program = read(data)
        return replace(program, calls=tuple(swapped(call) for call in program.calls))

    monkeypatch.setattr(Program, "from_json", altered)
    drafts = draft_logits(emulate(recorded).session, known(golden, 3), 48)
    with pytest.raises(AssertionError, match="differ by more"):
        assert_close(drafts, golden.arrays("mtp")["p3_draft_logits_all"], LOGITS)


def test_the_mtp_layer_is_loaded_when_drafts_are_wanted(recorded: RecordedEngine, emulation: Emulation) -> None:
    used = emulation.driver.used
    _ = emulation.session.draft_cache_layout
    assert emulation.driver.used == used
    with_drafts = emulate(recorded, drafts=True).driver
    loaded = [sum(nbytes for _, nbytes in driver.uploaded) for driver in (emulation.driver, with_drafts)]
    table = recorded.files().entries
    own = [entry.nbytes for name, entry in table.items() if name.startswith("model.layers.4.")]
    # neither the embedding, of 1 MB, nor the angles a second time; what lies between two weights is copied too
    assert sum(own) <= loaded[1] - loaded[0] <= sum(own) + 256 * len(own)
    draft_logits(emulation.session, [1, 2, 3], 2)
    assert emulation.driver.used > used


def test_too_little_memory_for_drafts_is_said_before_anything_is_loaded(recorded: RecordedEngine) -> None:
    roomy = emulate(recorded)
    driver = EmulatedDriver(memory=roomy.driver.used + (4 << 20))
    with pytest.raises(ResourceError, match=r"Without drafts it would fit: leave --speculate out\."):
        emulate(recorded, driver, drafts=True)
    assert driver.uploaded == []


def test_an_engine_without_an_mtp_layer(tiny_bf16: Path, tmp_path: Path) -> None:
    engine = recorded_engine(tiny_bf16, tmp_path / "engine", precision="fp32", mtp=False)
    assert "mtp" not in engine.files().manifest.graphs
    with pytest.raises(RequestError, match="expected a model with an MTP layer"):
        emulate(engine, drafts=True)
    session: TensorRTSession = emulate(engine).session
    with pytest.raises(RequestError, match="Build the engine without --no-mtp"):
        Engine(engine.files(), session, speculate=1)
