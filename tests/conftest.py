"""What all tests share: one thread for torch, no network, repeatable property tests, the paths of the test data."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.replayed_engine import RecordedEngine

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports torch or a tokenizer. One thread: the goldens were computed with one, and at these sizes a
# second, spinning thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A test that asks for a model hub is wrong; this makes it fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"

# In CI the examples are the same in every run; elsewhere they are new. No deadline: a model is a slow example.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that at the end no process works alone on a long file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_fp8() -> Path:
    """The FP8 checkpoint that the repository ships (see examples/README.md)."""
    return ROOT / "examples" / "tiny-dsv3"


@pytest.fixture(scope="session")
def tiny_bf16() -> Path:
    """The same model in BF16 (see tests/data/README.md)."""
    return ROOT / "tests" / "data" / "tiny-dsv3-bf16"


@pytest.fixture(scope="session")
def goldens() -> Callable[[Literal["bf16", "fp8"]], Path]:
    """``goldens(variant)``: the folder of expected outputs of one checkpoint (see tests/data/README.md)."""
    return lambda variant: ROOT / "tests" / "data" / "goldens" / variant


@pytest.fixture(scope="session")
def tiny_engine(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine that `dsv3export build` makes of the FP8 checkpoint; built once, not to be altered."""
    from dsv3export.graphs.build import build_engine

    out = tmp_path_factory.mktemp("engines") / "tiny.engine"
    build_engine(tiny_fp8, out)
    return out


@pytest.fixture(scope="session")
def engine_of(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``engine_of(precision)``: an engine of the BF16 checkpoint; built once, not to be altered."""
    from dsv3export.graphs.build import build_engine

    folder = tmp_path_factory.mktemp("precisions")

    @cache
    def built(precision: str) -> Path:
        out = folder / f"{precision}.engine"
        build_engine(tiny_bf16, out, precision=precision)
        return out

    return built


@pytest.fixture(scope="session")
def native_library() -> Path:
    """The library of native CPU kernels; the test is skipped where none was compiled."""
    from dsv3export.runtime.cpu_kernels import library

    found = library()
    if found is None:
        pytest.skip("the native CPU kernels were not compiled")
    return found


@pytest.fixture(scope="session")
def toy_engine_path(tmp_path_factory: pytest.TempPathFactory, tiny_fp8: Path) -> Path:
    """An engine of the toy model, which loads in no time; not to be altered."""
    from tests.runtime.toy_model import build_toy_engine

    path = tmp_path_factory.mktemp("toy") / "engine"
    build_toy_engine(path, tiny_fp8)
    return path


@pytest.fixture(scope="session")
def recorded_rtx(
    tiny_fp8: Path, tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RecordedEngine]:
    """``recorded_rtx(variant, precision, compute=None)``: a TensorRT-RTX engine of one checkpoint, and its record.

    Each is built once, and not to be altered.
    """
    pytest.importorskip("tensorrt_rtx_bindings")
    from tests.support.replayed_engine import build_recorded

    folder = tmp_path_factory.mktemp("rtx")

    @cache
    def built(variant: Literal["bf16", "fp8"], precision: str, compute: str | None = None) -> RecordedEngine:
        checkpoint = tiny_fp8 if variant == "fp8" else tiny_bf16
        return build_recorded(
            checkpoint, folder / f"{variant}-{precision}-{compute}", precision=precision, compute=compute
        )

    return built


@pytest.fixture(scope="session")
def rtx_engine(recorded_rtx: Callable[..., RecordedEngine]) -> Callable[[Literal["bf16", "fp8"], str], Path]:
    """``rtx_engine(variant, precision)``: a TensorRT-RTX engine of one checkpoint; built once, not to be altered."""
    return lambda variant, precision: recorded_rtx(variant, precision).path
