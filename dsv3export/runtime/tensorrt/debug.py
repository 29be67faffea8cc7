"""What a TensorRT engine computes inside, as it hands it to a debug listener while it runs."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.dtypes import NUMPY
from dsv3export.errors import BackendError
from dsv3export.runtime.device import Device
from dsv3export.runtime.tensorrt.engines import TYPES

Array = NDArray[Any]
_STORED = {member: stored for stored, member in TYPES.items() if stored in NUMPY}


def make_listener(trt: Any, device: Device) -> Any:
    """An `IDebugListener` that copies what it is shown to the host.

    `take()` hands out all arrays since the last one, by tensor name, and raises what went wrong in TensorRT's call: out
    of that, no exception may leave.
    """

    class Listener(trt.IDebugListener):  # type: ignore[misc]  # TensorRT's classes are not known to mypy
        def __init__(self) -> None:
            trt.IDebugListener.__init__(self)
            self._arrays: dict[str, Array] = {}
            self._error: Exception | None = None

        def process_debug_tensor(
            self, addr: Any, location: Any, type: Any, shape: Sequence[int], name: str, stream: int
        ) -> bool:
            try:
                on_device = location == trt.TensorLocation.DEVICE
                self._arrays[name] = _copied(
                    device if on_device else None, _address(addr), type.name, tuple(shape), int(stream)
                )
            except Exception as error:  # noqa: BLE001 (raised again by `take`)
                self._error = self._error or error
                return False
            return True

        def take(self) -> dict[str, Array]:
            arrays, self._arrays = self._arrays, {}
            error, self._error = self._error, None
            if error is not None:
                raise error
            return arrays

    return Listener()


def _copied(device: Device | None, address: int, dtype: str, shape: tuple[int, ...], stream: int) -> Array:
    """The tensor lies there for the time of the call; what computes it is queued in the stream.

    Raises BackendError for a type that has no array.
    """
    if dtype not in _STORED:
        raise BackendError(f"a debug tensor of type {dtype}", expected=f"one of {', '.join(_STORED)}")
    kind, count = NUMPY[_STORED[dtype]], math.prod(shape)
    if device is None:
        memory = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(address)
        return np.frombuffer(bytes(memory), kind).reshape(shape)
    staging, queue = device.pinned(count * kind.itemsize), device.stream(stream)
    queue.copy_out(staging, address, count * kind.itemsize)
    queue.synchronise()
    return staging.view(kind, count).reshape(shape).copy()


def _address(pointer: Any) -> int:
    """Of what the bindings make of a `void const*`: a capsule without a name, or a number."""
    if isinstance(pointer, int):
        return pointer
    value: int = _capsule_pointer(pointer, None)
    return value


_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
