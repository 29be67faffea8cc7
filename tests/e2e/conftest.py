"""Each golden test runs for both checkpoints; a test of `program` or `session` for executor and engine besides."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsv3export import Engine
from dsv3export.engine.parallel import Layout
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession
from dsv3export.runtime.session import Session
from tests.e2e.goldens import Golden, Program, Variant

if TYPE_CHECKING:
    from tests.support.replayed_engine import RecordedEngine, ReplayedEngine


@pytest.fixture(scope="session")
def bf16_golden(tiny_bf16: Path, goldens: Callable[[Variant], Path]) -> Golden:
    return Golden("bf16", tiny_bf16, goldens("bf16"))


@pytest.fixture(scope="session")
def fp8_golden(tiny_fp8: Path, goldens: Callable[[Variant], Path]) -> Golden:
    return Golden("fp8", tiny_fp8, goldens("fp8"))


@pytest.fixture(scope="session", params=["bf16", "fp8"])
def golden(request: pytest.FixtureRequest, bf16_golden: Golden, fp8_golden: Golden) -> Golden:
    return bf16_golden if request.param == "bf16" else fp8_golden


@pytest.fixture(scope="session")
def executor(golden: Golden) -> Executor:
    return Executor.from_checkpoint(golden.checkpoint)


@pytest.fixture(scope="session")
def engine_path(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("goldens") / f"{golden.variant}.engine"
    build_engine(golden.checkpoint, out)
    return out


@pytest.fixture(scope="session")
def engine(engine_path: Path) -> Engine:
    return Engine.load(engine_path, threads=1)


@pytest.fixture(scope="session")
def engine_session(engine_path: Path) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(EngineFiles.open(engine_path), threads=1)


@pytest.fixture(scope="session", params=["executor", "engine"])
def program(request: pytest.FixtureRequest, executor: Executor, engine: Engine) -> Program:
    chosen: Program = executor if request.param == "executor" else engine
    return chosen


@pytest.fixture(scope="session", params=["executor", "engine"])
def session(request: pytest.FixtureRequest, executor: Executor, engine_session: OnnxRuntimeSession) -> Session:
    return executor if request.param == "executor" else engine_session


@pytest.fixture(scope="session")
def replayed_rtx(recorded_rtx: Callable[..., RecordedEngine]) -> Callable[..., ReplayedEngine]:
    """``replayed_rtx(variant, precision, compute=None)``: the replay of a TensorRT-RTX engine; not to be altered."""
    from tests.support.replayed_engine import ReplayedEngine

    return cache(lambda *wanted: ReplayedEngine(recorded_rtx(*wanted)))


@pytest.fixture(scope="session")
def rank_engine(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Layout], Path]:
    """``rank_engine(layout)``: the FP8 checkpoint's engine for several ranks; built once, not to be altered."""
    folder = tmp_path_factory.mktemp("ranks")

    @cache
    def built(layout: Layout) -> Path:
        out = folder / layout.describe().replace(" ", "")
        build_engine(tiny_fp8, out, layout=layout)
        return out

    return built
