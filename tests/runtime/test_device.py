"""A device's memory, streams and graphs, on the emulated driver; and the errors of real and missing ones."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from dsv3export.errors import BackendError, ResourceError
from dsv3export.runtime.cuda_driver import DeviceLostError, Driver
from dsv3export.runtime.device import ALIGNMENT, Device, PinnedBuffer, aligned
from tests.support.emulated.driver import FRESH, EmulatedDriver, EmulationError

RESULTS = EmulatedDriver.CUresult


@pytest.fixture
def emulated() -> Iterator[EmulatedDriver]:
    driver = EmulatedDriver(memory=1 << 20)
    yield driver
    gc.collect()
    assert driver.faults == []


@pytest.fixture
def device(emulated: EmulatedDriver) -> Device:
    return Device(driver=Driver(emulated))


def pinned_with(device: Device, *numbers: int) -> PinnedBuffer:
    buffer = device.pinned(len(numbers))
    buffer.bytes[:] = numbers
    return buffer


def test_what_a_device_says(device: Device) -> None:
    assert (device.name, device.compute_capability, device.driver_version) == ("Emulated GPU", (8, 9), "13.0")
    assert device.memory().free == device.memory().total == 1 << 20


def test_there_and_back(device: Device) -> None:
    stream, there, back = device.stream(), device.allocate(4), device.pinned(6)
    source = pinned_with(device, 9, 1, 2, 3, 4)
    stream.copy_in(there.address, source, 4, offset=1)
    stream.copy_out(back, there.address, 4, offset=2)
    assert set(back.bytes.tolist()) == {FRESH}
    stream.synchronise()
    assert back.bytes.tolist() == [FRESH, FRESH, 1, 2, 3, 4]
    stream.zero(there.address + 1, 2)
    stream.copy_out(back, there.address, 4)
    stream.synchronise()
    assert back.view(np.dtype(np.uint8), 4).tolist() == [1, 0, 0, 4]


def test_memory_is_given_back(device: Device, emulated: EmulatedDriver) -> None:
    buffer, pinned = device.allocate(1000), device.pinned(10)
    assert (buffer.address % ALIGNMENT, emulated.used) == (0, 1000)
    del buffer, pinned
    gc.collect()
    assert (emulated.used, emulated.blocks) == (0, {})


def test_an_event_waits_for_what_was_before_it(device: Device) -> None:
    stream, back = device.stream(), device.pinned(2)
    there = device.allocate(2)
    stream.zero(there.address, 2)
    stream.copy_out(back, there.address, 1)
    event = stream.event()
    stream.copy_out(back, there.address, 1, offset=1)
    event.synchronise()
    assert back.bytes.tolist() == [0, FRESH]
    stream.synchronise()
    assert back.bytes.tolist() == [0, 0]


def test_a_graph_reads_its_input_anew_at_each_launch(device: Device, emulated: EmulatedDriver) -> None:
    stream, there = device.stream(), device.allocate(1)
    source, back = pinned_with(device, 1), device.pinned(1)

    def work() -> None:
        stream.copy_in(there.address, source, 1)
        stream.copy_out(back, there.address, 1)

    graph = stream.captured(work)
    stream.synchronise()
    assert back.bytes[0] == FRESH
    for number in (5, 6):
        source.bytes[0] = number
        stream.launch(graph)
        stream.synchronise()
        assert back.bytes[0] == number
    assert emulated.launched == 2
    del graph
    gc.collect()
    assert emulated.graphs == {}


def test_a_capture_that_fails_ends(device: Device, emulated: EmulatedDriver) -> None:
    stream = device.stream()
    with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        stream.captured(stream.synchronise)
    stream.captured(lambda: None)
    assert not any(queue.captured for queue in emulated.queues.values())


def test_too_little_memory(device: Device) -> None:
    with pytest.raises(ResourceError, match="the GPU's memory is full: got CUDA_ERROR_OUT_OF_MEMORY from cuMemAlloc"):
        device.allocate(2 << 20)


def test_a_lost_device(device: Device, emulated: EmulatedDriver) -> None:
    emulated.failures["cuStreamSynchronize"] = RESULTS.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceLostError, match=r"the GPU was lost: got CUDA_ERROR_ILLEGAL_ADDRESS .* Load the engine"):
        device.stream().synchronise()


def test_another_failure_is_named(device: Device, emulated: EmulatedDriver) -> None:
    emulated.failures["cuStreamCreate"] = RESULTS.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(BackendError, match="CUDA: cuStreamCreate failed: got CUDA_ERROR_INVALID_VALUE"):
        device.stream()


@pytest.mark.parametrize(
    ("emulated", "ordinal"), [(EmulatedDriver(devices=0), 0), (EmulatedDriver(), 1), (EmulatedDriver(), -1)]
)
def test_no_such_device(emulated: EmulatedDriver, ordinal: int) -> None:
    with pytest.raises(BackendError, match="no usable NVIDIA GPU: expected a driver and a device"):
        Device(ordinal, Driver(emulated))


def test_no_driver() -> None:
    """What cuda-bindings itself raises on a machine without a driver, and what the driver says without a device."""

    class NoLibrary(EmulatedDriver):
        def cuInit(self, flags: int) -> None:  # noqa: N802 (the driver's name)
            raise RuntimeError('"cuda" is an NVIDIA driver library')

    emulated = EmulatedDriver()
    emulated.failures["cuInit"] = RESULTS.CUDA_ERROR_NO_DEVICE
    for broken in (NoLibrary(), emulated):
        with pytest.raises(BackendError, match="no usable NVIDIA GPU"):
            Device(driver=Driver(broken))


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"expected the Python package cuda-bindings.*dsv3export\[rtx\]"):
        Driver()


def test_the_emulator_notices_what_hardware_would_not(device: Device) -> None:
    stream, there, source = device.stream(), device.allocate(4), pinned_with(device, 1, 2, 3, 4)
    stream.copy_in(there.address, source, 4)
    source.bytes[0] = 7
    with pytest.raises(EmulationError, match="overwritten before it was copied"):
        stream.synchronise()
    stream.synchronise()
    with pytest.raises(EmulationError, match="do not lie in one allocation"):
        stream.zero(there.address + 1, 4)
    address = there.address
    del there
    gc.collect()
    with pytest.raises(EmulationError, match="freed or was never allocated"):
        stream.zero(address, 4)


def test_the_emulator_frees_nothing_that_is_in_use(device: Device, emulated: EmulatedDriver) -> None:
    stream, there = device.stream(), device.allocate(4)
    stream.zero(there.address, 4)
    for message in ("while a stream still uses it", "freed twice"):
        with pytest.raises(EmulationError, match=message):
            emulated.cuMemFree(there.address + (message == "freed twice"))
    assert len(emulated.faults) == 2
    emulated.faults.clear()
    stream.synchronise()


def test_alignment() -> None:
    assert [aligned(n) for n in (0, 1, 256, 257)] == [0, 256, 256, 512]
