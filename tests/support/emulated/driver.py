"""`cuda.bindings.driver` with host memory as device memory.

It is stricter than hardware. Work runs when somebody waits for it, not before: a result that is read too early is not
there yet, and a staging buffer that is overwritten too early is noticed. Fresh memory holds a pattern, addresses are
checked, memory in use cannot be freed. What hardware would answer with an error comes as a CUresult; what would go
wrong in silence raises `EmulationError`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha1
from typing import Any, NoReturn

import cuda.bindings.driver as real
import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
FRESH = 0xCB  # as float16 or bfloat16 a large negative number, as int64 a large negative one
SUCCESS = real.CUresult.CUDA_SUCCESS


class EmulationError(AssertionError):
    """The program did something that hardware would not have reported."""


@dataclass
class Block:
    """An allocation; `bytes` begins at `address`."""

    address: int
    bytes: NDArray[np.uint8]
    on_host: bool


@dataclass
class Work:
    """Something a stream will do; `uses` are the addresses that it touches."""

    run: Callable[[], None]
    uses: tuple[int, ...] = ()
    check: Callable[[], None] = lambda: None


@dataclass
class Queue:
    """A stream: its work, and what is being captured instead of queued."""

    work: deque[Work] = field(default_factory=deque)
    captured: list[Work] | None = None


class EmulatedDriver:
    """The module's functions and enums.

    Args:
        memory: Bytes of the device.
        compute_capability: Of the device.

    Attributes:
        uploaded: (address, bytes) of each copy to the device that was done.
        launched: How many graphs were launched.
        failures: Function name -> CUresult with which its next call fails.
        faults: What went wrong where no caller can be told: when memory is given back. Must be empty at the end.
    """

    CUresult, CUdevice_attribute = real.CUresult, real.CUdevice_attribute
    CUstream = real.CUstream
    CUstream_flags, CUevent_flags = real.CUstream_flags, real.CUevent_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode

    def __init__(self, memory: int = 1 << 30, compute_capability: tuple[int, int] = (8, 9), devices: int = 1) -> None:
        self.total, self.compute_capability, self.devices = memory, compute_capability, devices
        self.blocks: dict[int, Block] = {}
        self.queues: dict[int, Queue] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.events: dict[int, tuple[Queue, Work] | None] = {}
        self.uploaded: list[tuple[int, int]] = []
        self.launched, self.pinned_peak = 0, 0
        self.failures: dict[str, real.CUresult] = {}
        self.faults: list[str] = []
        self.current = False
        self._last_handle = 0

    def __getattribute__(self, name: str) -> Any:
        """Driver functions with the number of arguments that the real ones take, and with planned failures."""
        value = object.__getattribute__(self, name)
        return partial(self._checked, name, value) if name.startswith("cu") and callable(value) else value

    def _checked(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        wanted = real_arity(name)
        if len(arguments) != wanted:
            raise EmulationError(f"{name} takes {wanted} arguments, got {len(arguments)}")
        if name in self.failures:
            return (self.failures.pop(name), *[None] * 2)
        if not self.current and name.startswith(("cuMem", "cuStream", "cuEvent", "cuGraph")):
            return (real.CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
        result = function(*arguments)
        return result if isinstance(result, tuple) else (SUCCESS,) if result is None else (SUCCESS, result)

    def cuInit(self, flags: int) -> None:
        assert flags == 0

    def cuDriverGetVersion(self) -> int:
        return 13000

    def cuDeviceGetCount(self) -> int:
        return self.devices

    def cuDeviceGet(self, ordinal: int) -> int:
        return ordinal

    def cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Emulated GPU".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> int:
        major = attribute == self.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return self.compute_capability[0 if major else 1]

    def cuDevicePrimaryCtxRetain(self, device: int) -> str:
        return "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.current = False

    def cuCtxSetCurrent(self, context: str) -> None:
        assert context == "context"
        self.current = True

    def cuMemGetInfo(self) -> tuple[Any, int, int]:
        return SUCCESS, self.total - self.used, self.total

    @property
    def used(self) -> int:
        """Bytes of the device that are taken."""
        return sum(len(block.bytes) for block in self.blocks.values() if not block.on_host)

    def cuMemAlloc(self, nbytes: int) -> Any:
        if self.used + nbytes > self.total:
            return real.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        return real.CUdeviceptr(self._allocate(nbytes, on_host=False))

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> int:
        address = self._allocate(nbytes, on_host=True)
        pinned = sum(len(block.bytes) for block in self.blocks.values() if block.on_host)
        self.pinned_peak = max(self.pinned_peak, pinned)
        return address

    def cuMemFree(self, pointer: Any) -> None:
        self._free(int(pointer), on_host=False)

    def cuMemFreeHost(self, address: int) -> None:
        self._free(address, on_host=True)

    def cuMemcpyHtoDAsync(self, target: Any, source: int, nbytes: int, stream: Any) -> None:
        into, out_of = self.device_bytes(int(target), nbytes), self.pinned_bytes(source, nbytes)
        queue = self.queues[int(stream)]

        def copy() -> None:
            into[:] = out_of
            self.uploaded.append((int(target), nbytes))

        # In a graph the buffer is read at each launch; elsewhere it has to be what it is now.
        self.enqueue(queue, Work(copy, (int(target), source), unchanged(out_of) if queue.captured is None else nothing))

    def cuMemcpyDtoHAsync(self, target: int, source: Any, nbytes: int, stream: Any) -> None:
        into, out_of = self.pinned_bytes(target, nbytes), self.device_bytes(int(source), nbytes)
        into[:] = FRESH  # so that a reader who does not wait reads nothing of use

        def copy() -> None:
            into[:] = out_of

        self.enqueue(self.queues[int(stream)], Work(copy, (target, int(source))))

    def cuMemsetD8Async(self, target: Any, value: int, nbytes: int, stream: Any) -> None:
        into = self.device_bytes(int(target), nbytes)
        self.enqueue(self.queues[int(stream)], Work(lambda: into.fill(value), (int(target),)))

    def cuStreamCreate(self, flags: int) -> Any:
        handle = self._handle()
        self.queues[handle] = Queue()
        return real.CUstream(handle)

    def cuStreamDestroy(self, stream: Any) -> None:
        del self.queues[int(stream)]

    def cuStreamSynchronize(self, stream: Any) -> Any:
        queue = self.queues[int(stream)]
        if queue.captured is not None:
            queue.captured = None
            return real.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None
        while queue.work:
            do(queue.work.popleft())
        return None

    def cuStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        assert isinstance(mode, real.CUstreamCaptureMode)
        self.queues[int(stream)].captured = []

    def cuStreamEndCapture(self, stream: Any) -> Any:
        queue = self.queues[int(stream)]
        if queue.captured is None:
            return real.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        handle = self._handle()
        self.graphs[handle], queue.captured = queue.captured, None
        return handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> int:
        handle = self._handle()
        self.graphs[handle] = list(self.graphs[graph])
        return handle

    def cuGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def cuGraphExecDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def cuGraphLaunch(self, graph: int, stream: Any) -> None:
        for work in self.graphs[graph]:
            for address in work.uses:
                self.block_of(address)
            self.enqueue(self.queues[int(stream)], work)
        self.launched += 1

    def cuEventCreate(self, flags: int) -> int:
        handle = self._handle()
        self.events[handle] = None
        return handle

    def cuEventRecord(self, event: int, stream: Any) -> None:
        mark, queue = Work(nothing), self.queues[int(stream)]
        self.enqueue(queue, mark)
        self.events[event] = queue, mark

    def cuEventSynchronize(self, event: int) -> None:
        recorded = self.events[event]
        assert recorded is not None
        queue, mark = recorded
        while any(work is mark for work in queue.work):
            do(queue.work.popleft())

    def cuEventDestroy(self, event: int) -> None:
        del self.events[event]

    def enqueue(self, queue: Queue, work: Work) -> None:
        """Adds work to a stream, or to what is captured of it."""
        (queue.work if queue.captured is None else queue.captured).append(work)

    def device_bytes(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """That memory. Raises EmulationError unless it lies within one allocation on the device."""
        return self._bytes(address, nbytes, on_host=False)

    def pinned_bytes(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """The same of page-locked memory."""
        return self._bytes(address, nbytes, on_host=True)

    @contextmanager
    def lent(self, nbytes: int) -> Iterator[int]:
        """The address of memory on the device that somebody else owns, and takes back in the end."""
        address = self._allocate(nbytes, on_host=False)
        try:
            yield address
        finally:
            self._free(address, on_host=False)

    def block_of(self, address: int) -> Block:
        """The allocation that an address lies in. Raises EmulationError."""
        for block in self.blocks.values():
            if block.address <= address < block.address + max(1, len(block.bytes)):
                return block
        raise EmulationError(f"address {address:#x} is freed or was never allocated")

    def _bytes(self, address: int, nbytes: int, on_host: bool) -> NDArray[np.uint8]:
        block = self.block_of(address)
        start = address - block.address
        if block.on_host != on_host or start + nbytes > len(block.bytes):
            raise EmulationError(f"{nbytes} bytes at {address:#x} do not lie in one allocation of that kind")
        return block.bytes[start : start + nbytes]

    def _allocate(self, nbytes: int, on_host: bool) -> int:
        if nbytes < 1:
            raise EmulationError("an allocation of no bytes is an error")
        backing = np.full(nbytes + ALIGNMENT, FRESH, np.uint8)
        skip = -backing.ctypes.data % ALIGNMENT
        block = Block(backing.ctypes.data + skip, backing[skip : skip + nbytes], on_host)
        self.blocks[block.address] = block
        return block.address

    def _free(self, address: int, on_host: bool) -> None:
        block = self.blocks.get(address)
        if block is None or block.on_host != on_host:
            self._fault(f"{address:#x} is freed twice, or was not allocated so")
        end = address + len(block.bytes)
        for queue in self.queues.values():
            if any(address <= used < end for work in queue.work for used in work.uses):
                self._fault(f"memory at {address:#x} is freed while a stream still uses it")
        del self.blocks[address]

    def _fault(self, message: str) -> NoReturn:
        self.faults.append(message)
        raise EmulationError(message)

    def _handle(self) -> int:
        self._last_handle += 16
        return self._last_handle


def nothing() -> None:
    """Does nothing."""


def unchanged(memory: NDArray[np.uint8]) -> Callable[[], None]:
    """Raises EmulationError when it is called and the memory is another than now."""
    digest = sha1(memory.tobytes()).digest()

    def check() -> None:
        if sha1(memory.tobytes()).digest() != digest:
            raise EmulationError("a staging buffer was overwritten before it was copied to the device")

    return check


def do(work: Work) -> None:
    """Runs it, its check first."""
    work.check()
    work.run()


def real_arity(name: str) -> int:
    """How many arguments the real function takes, by the signature in its docstring."""
    signature = re.match(rf"{name}\(([^)]*)\)", getattr(real, name).__doc__ or "")
    if signature is None:
        raise EmulationError(f"cuda.bindings.driver has no {name}")
    return len([part for part in signature[1].split(",") if part.strip()])
