"""Engines for several ranks: segments in ONNX Runtime compute what the uncut executor does; each part stands alone."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dsv3export.engine.manifest import Manifest
from dsv3export.engine.native_graphs import native_name
from dsv3export.engine.parallel import Layout, rank_folder
from dsv3export.engine.program import PROGRAM
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.segments import Recv, Run, SegmentProgram, Send, Step
from dsv3export.errors import BackendError, RequestError
from dsv3export.graphs.build import build_engine
from dsv3export.recipe import Recipe
from tests.graphs.shard.layouts import name_of
from tests.graphs.shard.whole_model import (
    CAPACITY,
    FIRST,
    NEXT,
    PROMPTS,
    SECOND,
    SLOTS,
    Computed,
    largest_difference,
    rows,
    same_tokens,
    whole_model,
)
from tests.support.segmented_engine import SegmentedEngine

BUILT = [
    ("fp32", Layout(pp=2, tp=2)),
    ("fp32", Layout(tp=2, ep=2)),
    ("bf16", Layout(pp=2, ep=2)),
    ("fp8", Layout(ep=4)),
]


@pytest.fixture(scope="module")
def cut_engine(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages of two ranks, float32; not to be altered."""
    out = tmp_path_factory.mktemp("cut") / "engine"
    build_engine(tiny_bf16, out, layout=Layout(pp=2, tp=2))
    return out


@pytest.mark.parametrize(("precision", "layout"), BUILT, ids=lambda x: name_of(x) if isinstance(x, Layout) else x)
def test_segments_compute_the_whole(tiny_bf16: Path, tmp_path: Path, precision: str, layout: Layout) -> None:
    build_engine(tiny_bf16, tmp_path / "engine", precision=precision, layout=layout)
    engine = SegmentedEngine(tmp_path / "engine")
    caches = engine.new_caches(len(SLOTS), CAPACITY)
    prefill = engine.step(PROMPTS, FIRST, caches, SLOTS, rows(PROMPTS))
    step = engine.step(NEXT, SECOND, caches, SLOTS, rows(NEXT))
    empty = np.zeros((len(SLOTS), CAPACITY, 160), np.float32)
    computed = Computed(prefill, step, engine.draft(prefill[1], PROMPTS, FIRST, rows(PROMPTS), empty))
    expected = whole_model(tiny_bf16, Recipe.for_precision(precision))

    assert largest_difference(expected, computed) < 1e-4
    assert same_tokens(expected, computed)
    for plan, sent in zip(engine.parallel.ranks, engine.bytes, strict=True):
        planned: Counter[str] = Counter()
        for traffic, tokens in ((plan.traffic, PROMPTS.size + NEXT.size), (plan.draft_traffic, PROMPTS.size)):
            for each in traffic:
                planned[each.op] += each.payload_per_row * tokens
        del planned["send"]
        assert sent == planned


def test_int8_experts_are_dispatched(tiny_bf16: Path, tiny_int8: Path, tmp_path: Path) -> None:
    """QMoE gets one expert for a row; compared with the uncut engine, as both round activations alike."""
    build_engine(tiny_bf16, tmp_path / "cut", precision="int8", layout=Layout(tp=2, ep=2))
    engine = SegmentedEngine(tmp_path / "cut")
    logits, _ = engine.step(PROMPTS, FIRST, engine.new_caches(len(SLOTS), CAPACITY), SLOTS, rows(PROMPTS))
    from dsv3export.runtime.latent_cache import LatentCache
    from dsv3export.runtime.onnxruntime_device import open_device
    from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession

    files = EngineFiles.open(tiny_int8)
    session = OnnxRuntimeSession(files, threads=1, device=open_device(files, "cpu", "onnxruntime"))
    cache = LatentCache(session.cache_layout, len(SLOTS), CAPACITY)
    assert abs(session.step(PROMPTS, FIRST, cache, SLOTS, rows(PROMPTS)) - logits).max() < 1e-4


@pytest.fixture(scope="module")
def tiny_int8(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "engine"
    build_engine(tiny_bf16, out, precision="int8", mtp=False)
    return out


def test_the_plan_is_stored_in_every_part(cut_engine: Path) -> None:
    whole = Manifest.read(cut_engine).parallel
    assert whole is not None
    assert (whole.layout, whole.rank) == (Layout(2, 2, 1), None)
    for rank, plan in enumerate(whole.ranks):
        manifest = Manifest.read(cut_engine / rank_folder(rank))
        assert manifest.parallel is not None
        assert (manifest.parallel.rank, manifest.parallel.digest) == (rank, whole.digest)
        assert sum(entry.nbytes for entry in manifest.weights) == plan.weight_bytes


def test_a_part_stands_alone(cut_engine: Path, tmp_path: Path) -> None:
    """engine.json, the tokenizer and one rank's folder are all that its machine needs."""
    shutil.copy(cut_engine / "engine.json", tmp_path)
    shutil.copytree(cut_engine / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(cut_engine / rank_folder(2), tmp_path / rank_folder(2))
    EngineFiles.open(tmp_path, "full")
    EngineFiles.open(tmp_path / rank_folder(2), "full")


def _segments(program: SegmentProgram) -> set[str]:
    return {step.segment for part in program.parts.values() for step in part.steps if isinstance(step, Run)}


def _exchanges(program: SegmentProgram) -> list[Step]:
    return [step for part in program.parts.values() for step in part.steps if not isinstance(step, Run)]


def test_program(cut_engine: Path) -> None:
    """The first stage sends what the second receives; the last one has the MTP layer; each segment is in the table."""
    programs = []
    for rank in range(4):
        files = EngineFiles.open(cut_engine / rank_folder(rank))
        program = SegmentProgram.from_json(files.graph(PROGRAM))
        twin = SegmentProgram.from_json(files.graph(native_name(PROGRAM)))
        runs, twins = (_segments(each) for each in (program, twin))
        assert runs == twins
        assert {PROGRAM, *runs} | {*map(native_name, (PROGRAM, *runs))} == files.manifest.graphs.keys()
        assert _exchanges(twin) == _exchanges(program) != []
        programs.append(program)
    first, last = programs[0].parts["trunk"].steps, programs[2].parts["trunk"].steps
    assert isinstance(first[-1], Send)
    assert last[0] == Recv(first[-1].value)
    assert [list(program.parts) for program in programs] == [["trunk"], ["trunk"], ["trunk", "mtp"], ["trunk", "mtp"]]


def test_equal_builds_are_equal(cut_engine: Path, tiny_bf16: Path, tmp_path: Path) -> None:
    build_engine(tiny_bf16, tmp_path / "again", layout=Layout(pp=2, tp=2), threads=1)
    for file in sorted(cut_engine.rglob("*")):
        if file.is_file() and file.name != "engine.json":
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(cut_engine)).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": Layout(tp=3)}, "--tp = 3: expected a divisor of the model's 4 attention heads"),
        ({"layout": Layout(ep=3)}, "--ep = 3: expected a divisor of the model's 16 routed experts"),
        ({"layout": Layout(pp=5)}, "--pp 5: expected at most the model's 4 layers"),
        ({"layout": Layout(tp=2), "layers": "0:2"}, "--layers: expected a whole model"),
        ({"layout": Layout(tp=2), "precision": "fp8"}, "cut through FP8's blocks of 128, got 192 numbers of 384"),
        ({"layout": Layout(tp=2), "precision": "int4"}, "cut through the int4 scheme's groups of 128, got 64 numbers"),
    ],
)
def test_refused(tiny_bf16: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises((RequestError, BackendError), match=message):
        build_engine(tiny_bf16, tmp_path / "engine", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
