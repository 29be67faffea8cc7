"""The debug listener: what it copies from where, and that no exception leaves it."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsv3export.errors import BackendError
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device
from dsv3export.runtime.tensorrt.debug import make_listener
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.tensorrt import _capsule

trt = pytest.importorskip("tensorrt_rtx_bindings")


@pytest.fixture
def device() -> Device:
    return Device(driver=Driver(EmulatedDriver()))


@pytest.mark.parametrize("as_capsule", [True, False])
def test_memory_of_the_device(device: Device, as_capsule: bool) -> None:
    """The bindings hand a capsule over; a number would do as well."""
    listener, stream = make_listener(trt, device), device.stream()
    values = np.array([[1, -2.5, 3]], ml_dtypes.bfloat16)
    buffer, staging = device.allocate(values.nbytes), device.pinned(values.nbytes)
    staging.bytes[:] = values.reshape(-1).view(np.uint8)
    stream.copy_in(buffer.address, staging, values.nbytes)
    where: Any = _capsule(buffer.address) if as_capsule else buffer.address
    place = trt.TensorLocation.DEVICE
    assert listener.process_debug_tensor(where, place, trt.DataType.BF16, trt.Dims([1, 3]), "x", stream.address)
    assert listener.take()["x"].tolist() == [[1, -2.5, 3]]
    assert listener.take() == {}


def test_memory_of_the_host(device: Device) -> None:
    listener, values = make_listener(trt, device), (ctypes.c_int64 * 2)(7, -1)
    place = trt.TensorLocation.HOST
    assert listener.process_debug_tensor(
        _capsule(ctypes.addressof(values)), place, trt.DataType.INT64, trt.Dims([2]), "sizes", 0
    )
    assert listener.take()["sizes"].tolist() == [7, -1]


def test_a_failure_is_raised_when_the_call_is_over(device: Device) -> None:
    listener = make_listener(trt, device)
    arguments = (0, trt.TensorLocation.HOST, trt.DataType.INT4, trt.Dims([2]), "packed", 0)
    assert listener.process_debug_tensor(*arguments) is False
    with pytest.raises(BackendError, match="type INT4"):
        listener.take()
    assert listener.take() == {}


def test_it_is_an_idebuglistener(device: Device) -> None:
    assert isinstance(make_listener(trt, device), trt.IDebugListener)
