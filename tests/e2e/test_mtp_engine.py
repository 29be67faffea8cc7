"""Engines with an MTP layer: what a build takes along, and that it drafts what the executor drafts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export import Engine
from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.native_graphs import native_name
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import RequestError
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.calibration_text import calibration_sequences
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession
from dsv3export.runtime.session import DraftingSession
from tests.e2e.goldens import Golden

MTP = "model.layers.4."
# Distance of a row of logits over the row's size: the largest of equal arithmetic; the median where activations or the
# cache are rounded, as a number at the edge between two may tip a router's choice for a token.
SAME, ROUNDED = 1e-5, 1e-2
NONE = np.zeros(0, np.int64)


def distances(got: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def distance(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(distances(got, expected).max())


def assert_drafts(engine: Path, executor: Executor, ids: list[int], same: bool) -> None:
    found = distances(Engine.load(engine, threads=1).draft_logits(ids), executor.draft_logits(ids))
    assert found.max() < SAME if same else (np.median(found) < ROUNDED and found.max() < 0.2), found


@pytest.mark.parametrize(
    ("precision", "cache", "same"),
    [("fp32", "bf16", False), ("bf16", "fp32", True), ("fp8", "fp8", False), ("int8", "fp32", False),
     ("int4", "f16", False)],
)  # fmt: skip
def test_drafts_of_each_precision(precision: str, cache: str, same: bool, bf16_golden: Golden, tmp_path: Path) -> None:
    report = build_engine(bf16_golden.checkpoint, tmp_path / "e", precision=precision, cache_dtype=cache)
    executor = Executor(Checkpoint.open(bf16_golden.checkpoint), recipe=report.manifest.recipe)
    assert_drafts(tmp_path / "e", executor, bf16_golden.ids(5)[:40], same)


def test_calibration_leaves_the_mtp_layer_alone(bf16_golden: Golden, tmp_path: Path) -> None:
    """The trunk's integers are fitted to the text, the MTP layer's are not; the executor does the same."""
    text = tmp_path / "text.txt"
    text.write_text("And it came to pass in the days when the judges ruled. " * 30)
    report = build_engine(bf16_golden.checkpoint, tmp_path / "e", precision="int4", calibration=text)
    build_engine(bf16_golden.checkpoint, tmp_path / "plain", precision="int4")
    fitted_files, other_files = EngineFiles.open(tmp_path / "e"), EngineFiles.open(tmp_path / "plain")
    changed = {name for name in fitted_files.entries if (fitted_files.weight(name) != other_files.weight(name)).any()}
    assert len(changed) > 10 and not any(name.startswith(MTP) for name in changed)
    checkpoint = Checkpoint.open(bf16_golden.checkpoint)
    fitted = Executor(
        checkpoint, recipe=report.manifest.recipe, calibration_ids=calibration_sequences(text, checkpoint)
    )
    assert_drafts(tmp_path / "e", fitted, bf16_golden.ids(5)[:24], same=False)


@pytest.mark.parametrize("options", [{"mtp": False}, {"layers": "0:2"}])
def test_an_engine_without_it(options: dict[str, object], tiny_fp8: Path, tmp_path: Path) -> None:
    manifest = build_engine(tiny_fp8, tmp_path / "e", **options).manifest  # type: ignore[arg-type]
    assert set(manifest.graphs) == {"trunk", native_name("trunk")}
    assert not any(entry.name.startswith(MTP) for entry in manifest.weights)
    with pytest.raises(RequestError, match=r"drafts of engine .*expected a model with an MTP layer.*--no-mtp"):
        Engine.load(tmp_path / "e", threads=1).draft_logits([0, 1, 2])


def test_its_weights_stay_in_the_checkpoint_where_they_can(tiny_fp8: Path, tmp_path: Path) -> None:
    manifest = build_engine(tiny_fp8, tmp_path / "e", precision="fp8").manifest
    places = {entry.name: entry.location for entry in manifest.weights if entry.name.startswith(MTP)}
    assert places[f"{MTP}mlp.experts.gate_proj"] == places[f"{MTP}self_attn.q_a_proj.weight"] == "checkpoint"
    assert sum(entry.name == "model.embed_tokens.weight" for entry in manifest.weights) == 1


def test_a_plain_run_does_not_open_it(engine_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither graph nor weights; and of what both graphs use there is one mapping."""
    read: list[str] = []
    graph, weight = EngineFiles.graph, EngineFiles.weight
    monkeypatch.setattr(EngineFiles, "graph", lambda self, name="trunk": (read.append(name), graph(self, name))[1])
    monkeypatch.setattr(EngineFiles, "weight", lambda self, name: (read.append(name), weight(self, name))[1])
    files = EngineFiles.open(engine_path)
    session = OnnxRuntimeSession(files, threads=1)
    session.step(np.array([[0, 5, 7]]), np.zeros(1, np.int64), LatentCache(session.cache_layout, 1, 4), range(1), NONE)
    mtp = {"mtp", native_name("mtp")}
    assert {"trunk", native_name("trunk")} & {*read} and not any(name in mtp or name.startswith(MTP) for name in read)
    assert session.draft_cache_layout.layers == 1
    assert mtp & {*read} and any(name.startswith(MTP) for name in read)
    name = "model.embed_tokens.weight"
    assert read.count(name) == 2 and np.shares_memory(files.weight(name), files.weight(name))


def test_hidden_states_on_demand(engine_session: OnnxRuntimeSession, executor: Executor, golden: Golden) -> None:
    """`step_hidden` is `step` and the final norm's values of all tokens; steps of both kinds may follow each other."""
    ids = np.array([golden.ids(3)[:12]])
    slot, rows = range(1), np.arange(6)
    cache = LatentCache(engine_session.cache_layout, 1, 12)
    first, hidden = engine_session.step_hidden(ids[:, :6], np.array([0]), cache, slot, rows)
    second = engine_session.step(ids[:, 6:], np.array([6]), cache, slot, rows)
    again, _ = engine_session.step_hidden(ids[:, 6:], np.array([6]), cache, slot, rows)
    values = executor.intermediates(ids[0].tolist())
    assert hidden.shape == (1, 6, executor.config.hidden_size)
    assert distance(hidden[0], values["norm"][0, :6].astype(np.float32)) < SAME
    expected = values["lm_head"].astype(np.float32)
    assert distance(np.concatenate([first, second]), expected) < SAME
    assert (again == second).all()


def drafts_of_drafts(session: DraftingSession, ids: NDArray[np.int64], depth: int) -> list[int]:
    """Greedy: the MTP layer drafts on from its own hidden state and its own draft."""
    count, slot = ids.shape[1], range(1)
    trunk = LatentCache(session.cache_layout, 1, count)
    cache = LatentCache(session.draft_cache_layout, 1, count + depth)
    logits, hidden = session.step_hidden(ids, np.array([0]), trunk, slot, np.array([count - 1]))
    next_ids = np.concatenate([ids[:, 1:], logits.argmax(axis=1)[None]], axis=1)
    logits, hidden = session.draft(hidden, next_ids, np.array([0]), cache, slot, np.array([count - 1]))
    drafted = [int(logits.argmax())]
    for more in range(1, depth):
        ids = np.array([[drafted[-1]]])
        logits, hidden = session.draft(hidden[:, -1:], ids, np.array([count + more - 1]), cache, slot, np.array([0]))
        drafted.append(int(logits.argmax()))
    return drafted


def test_drafts_of_drafts(engine_session: OnnxRuntimeSession, executor: Executor, golden: Golden) -> None:
    ids = np.array([golden.ids(5)[:20]])
    drafted = drafts_of_drafts(engine_session, ids, 4)
    assert drafted == drafts_of_drafts(executor, ids, 4)
    assert (
        drafted[0] == executor.draft_logits([*ids[0], int(executor.logits(ids[0].tolist())[-1].argmax())])[-1].argmax()
    )


def test_drafts_of_ragged_slots(engine_session: OnnxRuntimeSession, golden: Golden) -> None:
    """Two sequences of different lengths in one step, behind pairs that are cached: each as if it were alone."""
    session, prompts = engine_session, [golden.ids(3)[:11], golden.ids(5)[:8]]
    trunk, cache = (LatentCache(layout, 2, 16) for layout in (session.cache_layout, session.draft_cache_layout))
    hidden, alone = [], []
    for slot, ids in enumerate(prompts):
        row, alone_cache = np.array([ids]), LatentCache(session.draft_cache_layout, 1, 16)
        states = session.step_hidden(row[:, :-1], np.array([0]), trunk, range(slot, slot + 1), NONE)[1]
        logits, _ = session.draft(states, row[:, 1:], np.array([0]), alone_cache, range(1), np.arange(len(ids) - 1))
        session.draft(states[:, :-2], row[:, 1:-2], np.array([0]), cache, range(slot, slot + 1), NONE)
        hidden.append(states[:, -2:])
        alone.append(logits[-2:])
    start = np.array([len(ids) - 3 for ids in prompts])
    last = np.array([ids[-2:] for ids in prompts])
    together, _ = session.draft(np.concatenate(hidden), last, start, cache, range(2), np.arange(4))
    assert distance(together, np.concatenate(alone)) < SAME
