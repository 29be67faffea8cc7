"""Engines of TensorRT-RTX end to end on an emulated device: goldens, batches, chunks, caches in place, graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dsv3export import Engine
from dsv3export.engine.program import PROGRAM, Program
from dsv3export.errors import InternalError, ResourceError
from dsv3export.graphs import Executor
from dsv3export.runtime.generation import prompt_logits
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.tensorrt.session import TensorRTSession
from tests.e2e.goldens import Golden, greedy
from tests.support.compare import LOGITS, assert_close
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import LIMITS, Emulation, RecordedEngine, emulate, recorded_engine

# Of the goldens' prompts those that leave room for some tokens in 128; their lengths are 1, 2, 7, 22, 16 and 64.
PROMPTS = range(6)


@pytest.fixture(scope="module")
def golden(tiny_bf16: Path, goldens: Callable[[Literal["bf16", "fp8"]], Path]) -> Golden:
    return Golden("bf16", tiny_bf16, goldens("bf16"))


def continued(golden: Golden, count: int, prompts: Sequence[int] = PROMPTS) -> list[list[int]]:
    return [golden.prompts[prompt]["greedy_ids"][:count] for prompt in prompts]


def test_logits_are_the_goldens(golden: Golden, emulation: Emulation) -> None:
    expected = golden.arrays("full_logits")
    for prompt in range(1, 6):
        logits = prompt_logits(emulation.session, golden.ids(prompt))
        assert_close(logits, expected[f"p{prompt}_logits"], LOGITS, f"prompt {prompt}")


@pytest.mark.parametrize("slots", [1, 3, 6])
def test_ragged_batches_continue_as_the_goldens(golden: Golden, emulation: Emulation, slots: int) -> None:
    """Of 6 slots, more than the engine takes at once, a step is cut."""
    tokens = greedy(emulation.session, [golden.ids(prompt) for prompt in PROMPTS], 12, slots)
    assert tokens == continued(golden, 12)


@pytest.mark.parametrize("chunk", [1, 7, 48, 256])
def test_chunked_prefill(golden: Golden, emulation: Emulation, chunk: int) -> None:
    """Chunks that decode engines take, that prefill engines take, and one that is cut."""
    tokens = greedy(emulation.session, [golden.ids(prompt) for prompt in (3, 5)], 4, 2, chunk)
    assert tokens == continued(golden, 4, (3, 5))


def test_an_fp8_checkpoint(
    goldens: Callable[[Literal["bf16", "fp8"]], Path], recorded_fp8: RecordedEngine, tiny_fp8: Path
) -> None:
    golden = Golden("fp8", tiny_fp8, goldens("fp8"))
    session = emulate(recorded_fp8).session
    assert greedy(session, [golden.ids(prompt) for prompt in (2, 3)], 6, 2) == continued(golden, 6, (2, 3))


def test_integer_weights_are_the_executors(golden: Golden, tiny_bf16: Path, tmp_path: Path) -> None:
    """int4 experts and projections, int8 attention and head: their bytes reach the engines as those want them."""
    engine = recorded_engine(tiny_bf16, tmp_path / "int4.engine", precision="int4", compute="fp32")
    executor = Executor.from_checkpoint(tiny_bf16, recipe=engine.files().manifest.recipe)
    logits = prompt_logits(emulate(engine).session, golden.ids(3))
    assert_close(logits, executor.logits(golden.ids(3)), LOGITS)


def test_full_tensorrt(golden: Golden, recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runtime has neither validity checks nor configurations; the session asks it for neither."""
    program = Program.from_json(recorded.files().graph(PROGRAM))
    monkeypatch.setattr(Program, "from_json", lambda data: replace(program, flavour="tensorrt"))
    session = emulate(recorded, flavour="tensorrt").session
    assert greedy(session, [golden.ids(3)], 8, 1) == continued(golden, 8, (3,))
    assert session.graphs.captured == 1


def test_engine_load_generates(
    golden: Golden, recorded: RecordedEngine, emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own way in: the engine's record chooses the session, and its capacity bounds requests."""
    monkeypatch.setattr("dsv3export.runtime.tensorrt.session.TensorRTSession", lambda files, **_: emulation.session)
    engine = Engine.load(recorded.path)
    result = engine.generate(golden.ids(3), max_new_tokens=8, ignore_eos=True)
    assert [result.token_ids] == continued(golden, 8, (3,))
    assert (engine.limits.context, engine.limits.context_name) == (LIMITS.max_length, "what the engine was built for")
    assert Engine(recorded.files(), emulation.session, capacity=9).limits.context_name == "the capacity asked for"


def stepped(session: TensorRTSession, cache: LatentCache, slots: range, start: Sequence[int], tokens: int) -> None:
    ids = np.arange(len(slots) * tokens).reshape(len(slots), tokens) % session.vocab_size
    session.step(ids, np.array(start), cache, slots, np.arange(0))


def test_a_step_writes_its_rows_and_no_others(emulation: Emulation) -> None:
    session, driver = emulation.session, emulation.driver
    cache = LatentCache(session.cache_layout, 3, 100)
    rows, layout = LIMITS.max_length or 0, session.cache_layout
    stepped(session, cache, range(1, 3), (4, 30), 3)
    blocks = [block for block in driver.blocks.values() if len(block.bytes) == 3 * rows * layout.width * 4]
    assert len(blocks) == layout.layers
    for block in blocks:
        numbers = block.bytes.view(np.float32).reshape(3, rows, layout.width)
        written = [(slot, row) for slot, row in np.argwhere(np.abs(numbers).sum(axis=2) > 0).tolist()]
        assert written == [(1, 4), (1, 5), (1, 6), (2, 30), (2, 31), (2, 32)]
    assert not any(array.any() for _, array in cache.inputs(range(3)))  # the host's arrays are for show


def test_decoding_is_captured_once_and_launched(golden: Golden, emulation: Emulation) -> None:
    session, driver = emulation.session, emulation.driver
    tokens = greedy(session, [golden.ids(3), golden.ids(4)], 20, 2)
    assert tokens == continued(golden, 20, (3, 4))
    # 19 decode steps; of the first kind one is run with the common contexts and one with its own
    assert (session.graphs.captured, session.graphs.why_not) == (1, "")
    assert driver.launched == 17


def test_graphs_go_with_their_cache(golden: Golden, emulation: Emulation) -> None:
    session, driver = emulation.session, emulation.driver
    before = driver.used
    greedy(session, [golden.ids(3)], 8, 1)
    gc.collect()
    assert (driver.used, driver.graphs) == (before, {})


def test_without_capture_all_is_the_same(golden: Golden, recorded: RecordedEngine, driver: EmulatedDriver) -> None:
    session = emulate(recorded, driver, capturable=False).session
    assert greedy(session, [golden.ids(3)], 8, 1) == continued(golden, 8, (3,))
    assert (session.graphs.captured, driver.launched) == (0, 0)
    assert session.graphs.why_not.startswith("TensorRT cannot capture")


def test_a_capture_that_the_driver_refuses(golden: Golden, emulation: Emulation) -> None:
    emulation.driver.failures["cuGraphInstantiate"] = EmulatedDriver.CUresult.CUDA_ERROR_NOT_SUPPORTED
    assert greedy(emulation.session, [golden.ids(3)], 8, 1) == continued(golden, 8, (3,))
    assert "cuGraphInstantiate failed: got CUDA_ERROR_NOT_SUPPORTED" in emulation.session.graphs.why_not


def test_logits_of_more_rows_than_there_is_room_for(golden: Golden, emulation: Emulation) -> None:
    """Four slots of 48 tokens: three portions of 64 rows."""
    session, ids = emulation.session, golden.ids(5)[:48]
    cache = LatentCache(session.cache_layout, 4, 48)
    rows = np.arange(4 * 48)[::-1]
    logits = session.step(np.array([ids] * 4), np.zeros(4, np.int64), cache, range(4), rows)
    expected = golden.arrays("full_logits")["p5_logits"][:48]
    assert_close(logits, np.concatenate([expected[::-1]] * 4), LOGITS)


def test_a_cache_that_does_not_fit_says_how_many_would(recorded: RecordedEngine) -> None:
    driver = EmulatedDriver(memory=40 << 20)
    session = emulate(recorded, driver).session
    fit = (driver.total - driver.used) // (session.cache_layout.bytes_per_token * session.capacity)
    with pytest.raises(ResourceError, match=rf"latent cache of 999 sequences of 128 tokens.*Run {fit} at once\."):
        stepped(session, LatentCache(session.cache_layout, 999, 10), range(1), (0,), 1)


def test_a_cache_longer_than_the_engine_was_built_for(emulation: Emulation) -> None:
    session = emulation.session
    with pytest.raises(InternalError, match="a cache of 129 rows; the engine was built for 128"):
        stepped(session, LatentCache(session.cache_layout, 1, 129), range(1), (0,), 1)
    with pytest.raises(InternalError, match="does not fit slots"):
        stepped(session, LatentCache(session.cache_layout, 1, 10), range(1), (9,), 2)
