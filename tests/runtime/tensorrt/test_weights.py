"""Weights on their way to the device: each once, byte for byte, with little memory of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dsv3export.engine.manifest import WeightEntry
from dsv3export.engine.program import PROGRAM, Program
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import EngineError
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import ALIGNMENT, Device
from dsv3export.runtime.tensorrt import weights
from dsv3export.runtime.tensorrt.weights import DeviceWeights, wanted_weights
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import RecordedEngine


@pytest.fixture(params=["recorded", "recorded_fp8"])
def files(request: pytest.FixtureRequest) -> EngineFiles:
    """An engine with copies of its weights, and one whose experts are many pieces of a checkpoint."""
    engine: RecordedEngine = request.getfixturevalue(request.param)
    return engine.files()


def program_of(files: EngineFiles) -> Program:
    return Program.from_json(files.graph(PROGRAM))


@pytest.mark.parametrize("chunk", [weights.CHUNK, 100_000, 4096])
def test_every_byte_arrives_once(
    files: EngineFiles, driver: EmulatedDriver, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK", chunk)
    entries = wanted_weights(files, program_of(files))
    device = Device(driver=Driver(driver))
    loaded = DeviceWeights(files, entries, device, device.stream())
    for entry in entries:
        address = loaded.addresses[entry.name]
        assert address % ALIGNMENT == 0
        stored = np.ascontiguousarray(files.weight(entry.name)).reshape(-1).view(np.uint8)
        assert np.array_equal(driver.device_bytes(address, entry.nbytes), stored), entry.name
    spans = sorted((address, address + nbytes) for address, nbytes in driver.uploaded)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert sum(nbytes for _, nbytes in driver.uploaded) <= loaded.nbytes
    assert driver.pinned_peak <= 2 * chunk


def test_weights_that_several_calls_use_are_loaded_once(files: EngineFiles) -> None:
    entries = wanted_weights(files, program_of(files))
    assert len({entry.name for entry in entries}) == len(entries)
    assert {entry.name for entry in entries} <= files.entries.keys()


@pytest.mark.parametrize(
    ("alter", "got"),
    [
        (lambda entry: replace(entry, shape=(entry.shape[0] + 1, *entry.shape[1:])), r"F32 \[2049, 256\]"),
        (lambda entry: replace(entry, dtype="F16"), r"F16 \[2048, 256\]"),
        (None, r"none in engine\.json"),
    ],
)
def test_a_weight_that_is_not_what_the_engines_take(
    recorded: RecordedEngine, alter: Callable[[WeightEntry], WeightEntry] | None, got: str
) -> None:
    files, name = recorded.files(), "lm_head.weight"
    entries = dict(files.entries)
    if alter is None:
        del entries[name]
    else:
        entries[name] = alter(entries[name])
    files.entries = entries
    with pytest.raises(EngineError, match=rf"weight 'lm_head.weight': expected F32 \[2048, 256\].*, got {got}"):
        wanted_weights(files, program_of(files))


def test_a_file_that_is_cut_while_it_is_read(recorded: RecordedEngine, tmp_path: Path, driver: EmulatedDriver) -> None:
    files = recorded.files()
    entries = wanted_weights(files, program_of(files))
    for file in files.manifest.weight_files("engine"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        # its end is the MTP layer's
        (tmp_path / file).write_bytes((files.path / file).read_bytes()[: (files.path / file).stat().st_size // 2])
    files.path = tmp_path
    device = Device(driver=Driver(driver))
    with pytest.raises(EngineError, match="it was cut just now"):
        DeviceWeights(files, entries, device, device.stream())
