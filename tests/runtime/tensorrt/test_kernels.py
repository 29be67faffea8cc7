"""Compiled kernels in the user's cache folder: found again, replaced whole, never a reason to fail."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device
from dsv3export.runtime.tensorrt.kernels import KernelCache
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import RecordedEngine, emulate

KERNELS = b"compiled kernels"  # what the emulated TensorRT-RTX hands out


def test_written_when_the_session_ends_and_read_by_the_next(recorded: RecordedEngine, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "x.kernels"
    first = emulate(recorded, kernels=file)
    assert (first.trt.kernels, file.exists()) == ([], False)
    del first
    gc.collect()
    assert file.read_bytes() == KERNELS and [path.name for path in file.parent.iterdir()] == ["x.kernels"]
    stamp = file.stat().st_mtime_ns
    second = emulate(recorded, kernels=file)
    assert second.trt.kernels == [KERNELS]
    del second
    gc.collect()
    assert file.stat().st_mtime_ns == stamp


def test_old_kernels_are_replaced(recorded: RecordedEngine, tmp_path: Path) -> None:
    file = tmp_path / "x.kernels"
    file.write_bytes(b"of another driver")
    emulate(recorded, kernels=file)
    gc.collect()
    assert file.read_bytes() == KERNELS


def test_a_folder_that_cannot_be_made_is_no_error(recorded: RecordedEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    session = emulate(recorded, kernels=tmp_path / "file" / "x.kernels").session
    assert session.vocab_size == 2048


def test_one_file_for_an_engine_and_a_kind_of_device(
    recorded: RecordedEngine, recorded_fp8: RecordedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices = [Device(driver=Driver(EmulatedDriver())) for _ in range(2)]
    devices[1].name = "Another: GPU/2"
    caches = [KernelCache.of(engine.files(), device) for engine in (recorded, recorded_fp8) for device in devices]
    paths = [cache.path for cache in caches]
    assert len(set(paths)) == 4
    assert all(path is not None and path.parent == tmp_path / "dsv3export" / "tensorrt-rtx" for path in paths)
    assert str(paths[1]).endswith("-Another-GPU-2.kernels")
