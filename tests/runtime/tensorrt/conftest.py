"""Engines that real TensorRT-RTX built, once a session, while a recorder listened; sessions replay them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import Emulation, RecordedEngine, emulate, recorded_engine


@pytest.fixture(scope="session")
def recorded(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedEngine:
    """The BF16 checkpoint, computed in float32 with a float32 cache, so that the goldens hold."""
    pytest.importorskip("tensorrt_rtx_bindings")
    out = tmp_path_factory.mktemp("tensorrt") / "fp32.engine"
    return recorded_engine(tiny_bf16, out, precision="fp32")


@pytest.fixture(scope="session")
def recorded_fp8(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedEngine:
    """The FP8 checkpoint, most of its weights left where they are."""
    pytest.importorskip("tensorrt_rtx_bindings")
    out = tmp_path_factory.mktemp("tensorrt") / "fp8.engine"
    return recorded_engine(tiny_fp8, out, precision="fp8", compute="fp32")


@pytest.fixture
def driver() -> Iterator[EmulatedDriver]:
    """An emulated driver that nothing was done to in vain."""
    made = EmulatedDriver()
    yield made
    gc.collect()
    assert made.faults == []


@pytest.fixture
def emulation(recorded: RecordedEngine, driver: EmulatedDriver) -> Emulation:
    """The float32 engine on an emulated device."""
    return emulate(recorded, driver)
