"""One NVIDIA GPU: its memory, page-locked host memory, streams, events and graphs. No torch.

Everything that is made here gives itself back when nothing refers to it any more; memory that a stream still works with
has to be kept until the stream was synchronised.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from dsv3export.runtime.cuda_driver import Driver, no_driver

# What the driver aligns allocations to, and TensorRT wants of every address.
ALIGNMENT = 256
_NAME_BYTES = 256


def aligned(nbytes: int) -> int:
    """Rounded up to what another tensor may begin at."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes of a device's memory: what can still be had, and all of it."""

    free: int
    total: int


class Device:
    """The GPU with this number, of those that CUDA_VISIBLE_DEVICES leaves; its primary context is current after this.

    Attributes:
        name: E.g. ``NVIDIA GeForce RTX 4090``.
        compute_capability: (8, 9) for sm_89.
        driver_version: The CUDA version that the driver knows, e.g. ``13.0``.

    Raises BackendError where there is no driver or no such device.
    """

    def __init__(self, ordinal: int = 0, driver: Driver | None = None) -> None:
        call = driver or Driver()
        call("cuInit", 0)
        count = call("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise no_driver(f"{count} of them" if count else "no device")
        handle = call("cuDeviceGet", ordinal)
        self.name = bytes(call("cuDeviceGetName", _NAME_BYTES, handle)).split(b"\0")[0].decode("utf-8", "replace")
        kinds = call.module.CUdevice_attribute
        self.compute_capability: tuple[int, int] = (
            int(call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle)),
            int(call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle)),
        )
        version = int(call("cuDriverGetVersion"))
        self.driver_version = f"{version // 1000}.{version % 1000 // 10}"
        self.call = call
        self._context = call("cuDevicePrimaryCtxRetain", handle)
        finalize(self, call.release, "cuDevicePrimaryCtxRelease", handle)
        self.make_current()

    def make_current(self) -> None:
        """For a thread that has not used the device before."""
        self.call("cuCtxSetCurrent", self._context)

    def memory(self) -> MemoryInfo:
        """What other processes leave of it counts as well."""
        free, total = self.call("cuMemGetInfo")
        return MemoryInfo(int(free), int(total))

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Memory on the device, of unknown content. Raises ResourceError."""
        return DeviceBuffer(self.call, nbytes)

    def pinned(self, nbytes: int) -> PinnedBuffer:
        """Page-locked memory of the host. Raises ResourceError."""
        return PinnedBuffer(self.call, nbytes)

    def stream(self, address: int | None = None) -> Stream:
        """A new queue of work, or the one at an address, which somebody else has made and keeps."""
        return Stream(self.call, address)


class DeviceBuffer:
    """Memory on the device, aligned to `ALIGNMENT`."""

    def __init__(self, call: Driver, nbytes: int) -> None:
        handle = call("cuMemAlloc", max(1, nbytes))
        self.address, self.nbytes = int(handle), nbytes
        finalize(self, call.release, "cuMemFree", handle)


class PinnedBuffer:
    """Page-locked memory of the host, which the device reads and writes by itself.

    `bytes` (uint8[nbytes]) is that memory; it must not be used when the buffer is gone.
    """

    def __init__(self, call: Driver, nbytes: int) -> None:
        address = int(call("cuMemHostAlloc", max(1, nbytes), 0))
        finalize(self, call.release, "cuMemFreeHost", address)
        self.address, self.nbytes = address, nbytes
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def view(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """The first `count` elements."""
        return self.bytes[: count * dtype.itemsize].view(dtype)


class Stream:
    """Work that the device does in order, while the host goes on."""

    def __init__(self, call: Driver, address: int | None = None) -> None:
        self._call = call
        if address is not None:
            self.handle = call.module.CUstream(address)
            return
        self.handle = call("cuStreamCreate", int(call.module.CUstream_flags.CU_STREAM_NON_BLOCKING))
        finalize(self, call.release, "cuStreamDestroy", self.handle)

    @property
    def address(self) -> int:
        """As TensorRT wants a stream."""
        return int(self.handle)

    def copy_in(self, target: int, source: PinnedBuffer, nbytes: int, offset: int = 0) -> None:
        """Copies from `offset` in `source` to an address on the device. `source` must stay as it is until then."""
        self._call("cuMemcpyHtoDAsync", target, source.address + offset, nbytes, self.handle)

    def copy_out(self, target: PinnedBuffer, source: int, nbytes: int, offset: int = 0) -> None:
        """Copies from an address on the device to `offset` in `target`, to be read after `synchronise`."""
        self._call("cuMemcpyDtoHAsync", target.address + offset, source, nbytes, self.handle)

    def zero(self, target: int, nbytes: int) -> None:
        """Fills memory of the device with zeros."""
        self._call("cuMemsetD8Async", target, 0, nbytes, self.handle)

    def synchronise(self) -> None:
        """Waits for all work so far. Raises DeviceLostError where it failed."""
        self._call("cuStreamSynchronize", self.handle)

    def drain(self) -> None:
        """Waits until nothing is left to be done, whether it worked or not: memory may be given back after this."""
        self._call.release("cuStreamSynchronize", self.handle)

    def event(self) -> Event:
        """A mark behind all work so far."""
        return Event(self._call, self.handle)

    def captured(self, work: Callable[[], None]) -> Graph:
        """What `work` puts into this stream, as a graph; nothing of it is done.

        Raises BackendError where something in it cannot be captured.
        """
        mode = self._call.module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            self._call.release("cuStreamEndCapture", self.handle)
            raise
        return Graph(self._call, self._call("cuStreamEndCapture", self.handle))

    def launch(self, graph: Graph) -> None:
        """Does what was captured."""
        self._call("cuGraphLaunch", graph.handle, self.handle)


class Event:
    """A place in a stream."""

    def __init__(self, call: Driver, stream: Any) -> None:
        self._call = call
        self._handle = call("cuEventCreate", int(call.module.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        finalize(self, call.release, "cuEventDestroy", self._handle)
        call("cuEventRecord", self._handle, stream)

    def synchronise(self) -> None:
        """Waits until the stream has come here."""
        self._call("cuEventSynchronize", self._handle)


class Graph:
    """Captured work, ready to be launched."""

    def __init__(self, call: Driver, graph: Any) -> None:
        try:
            self.handle = call("cuGraphInstantiate", graph, 0)
        finally:
            call.release("cuGraphDestroy", graph)
        finalize(self, call.release, "cuGraphExecDestroy", self.handle)
