"""TensorRT's runtime over the emulated driver: an engine's bytes are looked up among recorded networks and replayed.

Everything that TensorRT wants of its caller is checked at the time TensorRT would look at it: each tensor bound, on
the right side, aligned, large enough and still there; sizes within the profile; an ordinary run at the same sizes
before a capture, and no change of a context after it. What TensorRT would refuse is refused and logged; what would go
wrong in silence raises `EmulationError`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch

from dsv3export.graphs.lower.tensorrt.record import Call, Record, Ref
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.replay import Replay, replay_of
from dsv3export.graphs.lower.tensorrt.replay_layers.layer import DTYPES
from tests.support.emulated.driver import ALIGNMENT, EmulatedDriver, EmulationError, Work

SCRATCH = 1000
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class EmulatedTensorRT:
    """A flavour's module for the runtime; all but `Runtime` is the real one's.

    Args:
        recorder: What the engines were built with.
        driver: Has the memory and the streams.
        flavour: Full TensorRT has neither validity checks, runtime configurations nor a say in what can be captured.

    Attributes:
        validity: What `get_engine_validity` answers.
        capturable: What contexts answer to `is_stream_capturable`.
        kernels: What the runtime cache has been given, and what it hands out.
        contexts: Every context that was made.
        refuse: Serialized engines are refused, with this reason.
    """

    def __init__(self, recorder: Recorder, driver: EmulatedDriver, flavour: str = "tensorrt-rtx") -> None:
        self._recorder, self.driver, self.rtx = recorder, driver, flavour == "tensorrt-rtx"
        self.__version__ = recorder.__version__
        self.validity: tuple[Any, int] = (recorder.EngineValidity.VALID, 0)
        self.capturable = True
        self.kernels: list[bytes] = []
        self.contexts: list[EmulatedContext] = []
        self.refuse = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def Runtime(self, log: Any) -> Any:
        return EmulatedRuntime(self, log) if self.rtx else FullRuntime(self, log)

    def record_of(self, engine: bytes) -> Record:
        return self._recorder.record_of(engine)


class FullRuntime:
    def __init__(self, trt: EmulatedTensorRT, log: Any) -> None:
        self._trt, self._log = trt, log

    def deserialize_cuda_engine(self, data: bytes) -> EmulatedEngine | None:
        try:
            if self._trt.refuse:
                raise KeyError(self._trt.refuse)
            return EmulatedEngine(self._trt, self._log, self._trt.record_of(data))
        except KeyError as error:
            self._log.log(self._trt.ILogger.Severity.ERROR, str(error.args[0]))
            return None


class EmulatedRuntime(FullRuntime):
    def get_engine_validity(self, data: bytes) -> tuple[Any, int]:
        return self._trt.validity


@dataclass(frozen=True)
class Tensor:
    """An input or output. `limits` are the least, commonest and largest shape, or values of one on the host."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool
    on_host: bool
    limits: Range | None


class EmulatedEngine:
    def __init__(self, trt: EmulatedTensorRT, log: Any, record: Record) -> None:
        self.trt, self.log, self.record = trt, log, record
        self.replay: Replay = replay_of(record)
        shapes, values = _profile(record, "set_shape"), _profile(record, "set_shape_input")
        self.tensors: dict[str, Tensor] = {}
        for facts, is_input in ((self.replay.inputs, True), (self.replay.outputs, False)):
            for name, fact in facts.items():
                limits = values.get(name) or shapes.get(name)
                self.tensors[name] = Tensor(name, fact.dtype, tuple(fact.shape), is_input, name in values, limits)
        self._aliases = _aliases(record)
        self.debug_tensors = _debug_tensors(record)

    device_memory_size_v2 = SCRATCH

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, place: int) -> str:
        return list(self.tensors)[place]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.trt.DataType, self.tensors[name].dtype)

    def get_tensor_location(self, name: str) -> Any:
        places = self.trt.TensorLocation
        return places.HOST if self.tensors[name].on_host else places.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._aliases.get(name)

    def create_runtime_config(self) -> EmulatedConfig:
        if not self.trt.rtx:
            raise EmulationError("full TensorRT has no runtime configuration")
        return EmulatedConfig(self.trt)

    def create_execution_context(self, how: Any) -> EmulatedContext:
        strategy = how.strategy if self.trt.rtx else how
        if strategy != self.trt.ExecutionContextAllocationStrategy.USER_MANAGED:
            raise EmulationError("each context would take scratch memory of its own")
        context = EmulatedContext(self)
        self.trt.contexts.append(context)
        return context


class EmulatedConfig:
    """`IRuntimeConfig`, and the runtime cache that it makes."""

    strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, trt: EmulatedTensorRT) -> None:
        self._trt = trt

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> EmulatedCache:
        return EmulatedCache(self._trt)

    def set_runtime_cache(self, cache: EmulatedCache) -> bool:
        return True


class EmulatedCache:
    def __init__(self, trt: EmulatedTensorRT) -> None:
        self._trt = trt

    def deserialize(self, data: bytes) -> bool:
        self._trt.kernels.append(data)
        return True

    def serialize(self) -> bytes:
        return b"compiled kernels"


class EmulatedContext:
    def __init__(self, engine: EmulatedEngine) -> None:
        self.engine, self._driver = engine, engine.trt.driver
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._changes = 0
        self._ready = -1
        self._listener: Any = None
        self._shown: list[str] = []
        if engine.trt.rtx:
            self.is_stream_capturable = lambda stream: engine.trt.capturable

    def set_device_memory(self, address: int, size: int) -> None:
        if size < SCRATCH or address % ALIGNMENT:
            raise EmulationError("too little scratch memory, or unaligned")
        self._driver.device_bytes(address, SCRATCH)
        self._scratch = address
        self._changes += 1

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        tensor = self.engine.tensors.get(name)
        if tensor is None or not tensor.is_input:
            return self._refuse(f"{name} is no input")
        sizes = tuple(shape)
        fixed = zip(sizes, tensor.shape, strict=False)
        if len(sizes) != len(tensor.shape) or any(known not in (-1, size) for size, known in fixed):
            return self._refuse(f"{name}: {sizes} is not {tensor.shape}")
        if tensor.limits and not _within(sizes, tensor.limits):
            return self._refuse(f"{name}: {sizes} is not within the profile {tensor.limits}")
        if self._shapes.get(name) != sizes:
            self._shapes[name] = sizes
            self._changes += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.tensors:
            return self._refuse(f"there is no tensor {name}")
        self._addresses[name] = address
        return True

    def set_debug_listener(self, listener: Any) -> bool:
        if not isinstance(listener, self.engine.trt.IDebugListener):
            raise TypeError("not an IDebugListener")
        self._listener = listener
        return True

    def set_tensor_debug_state(self, name: str, flag: bool) -> bool:
        if name not in self.engine.debug_tensors:
            return self._refuse(f"{name} was not marked as a debug tensor")
        if flag and name not in self._shown:
            self._shown.append(name)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self._scratch:
            raise EmulationError("no scratch memory was set")
        queue = self._driver.queues[stream]
        try:
            on_host = {tensor.name: self._host_values(tensor) for tensor in self._tensors(on_host=True)}
            shapes = {tensor.name: self._shape(tensor) for tensor in self._tensors() if tensor.is_input}
            for tensor in self._tensors(on_host=False):
                self._check_address(tensor, shapes.get(tensor.name))
        except KeyError as error:
            return self._refuse(f"{error.args[0]} has no address or shape")
        except ValueError as error:
            return self._refuse(str(error))
        if queue.captured is not None and self._ready != self._changes:
            raise EmulationError("a capture without an ordinary run at these sizes before it")
        addresses, changes = dict(self._addresses), self._changes
        self._ready = changes

        def check() -> None:
            if self._changes != changes:
                raise EmulationError("a context was changed before its work was done or after its graph was captured")

        device = [addresses[tensor.name] for tensor in self._tensors(on_host=False)]
        inner: dict[str, torch.Tensor] = {}
        run = lambda: inner.update(self._run(addresses, shapes, on_host))  # noqa: E731 (bound to this call's addresses)
        self._driver.enqueue(queue, Work(run, (*device, self._scratch), check))
        return self._show(inner, stream) if self._shown and self._listener is not None else True

    def _show(self, inner: Mapping[str, torch.Tensor], stream: int) -> bool:
        """As TensorRT does while it queues a call: each tensor for the time of the callback, filled by the stream."""
        queue = self._driver.queues[stream]
        if queue.captured is not None:
            raise EmulationError("debug tensors in a graph")
        self._driver.cuStreamSynchronize(stream)
        for name in self._shown:
            values = inner[name].contiguous().view(-1).view(torch.uint8).numpy()
            with self._driver.lent(values.size) as address:
                target = self._driver.device_bytes(address, values.size)
                self._driver.enqueue(queue, Work(partial(np.copyto, target, values), (address,)))
                kind = getattr(self.engine.trt.DataType, self.engine.debug_tensors[name])
                place, shape = self.engine.trt.TensorLocation.DEVICE, tuple(inner[name].shape)
                if not self._listener.process_debug_tensor(_capsule(address), place, kind, shape, name, stream):
                    return self._refuse(f"the debug listener failed at {name}")
        return True

    def _run(
        self, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], on_host: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Outputs into their places; returns the tensors that are shown."""
        tensors = self.engine.tensors
        inputs = {
            name: on_host[name] if tensors[name].on_host else self._tensor(tensors[name], addresses[name], shape)
            for name, shape in shapes.items()
        }
        results = self.engine.replay.run(inputs, self._shown)
        for name in self.engine.replay.outputs:
            result = results[name]
            kept = result.contiguous().view(-1).view(torch.uint8).numpy()
            target = self._driver.device_bytes(addresses[name], kept.size)
            if kept.ctypes.data != addresses[name]:
                if self.engine.get_aliased_input_tensor(name):
                    raise EmulationError(f"{name} is not the memory that was bound to it")
                target[:] = kept
        return {name: results[name] for name in self._shown}

    def _tensors(self, on_host: bool | None = None) -> list[Tensor]:
        return [each for each in self.engine.tensors.values() if on_host is None or each.on_host == on_host]

    def _host_values(self, tensor: Tensor) -> torch.Tensor:
        count = prod(tensor.shape)
        values = list((ctypes.c_int64 * count).from_address(self._addresses[tensor.name]))
        if tensor.dtype != "INT64" or not (tensor.limits and _within(values, tensor.limits)):
            raise ValueError(f"{tensor.name} = {values} is not within the profile {tensor.limits}")
        return torch.tensor(values).reshape(tensor.shape)

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tensor.shape if -1 not in tensor.shape else self._shapes[tensor.name]

    def _check_address(self, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
        address = self._addresses[tensor.name]
        if address % ALIGNMENT:
            raise ValueError(f"{tensor.name}: address {address:#x} is not aligned")
        self._driver.device_bytes(address, 1 if shape is None else _nbytes(tensor, shape))
        alias = self.engine.get_aliased_input_tensor(tensor.name)
        if alias and self._addresses[alias] != address:
            raise ValueError(f"{tensor.name} must have the address of {alias}")

    def _tensor(self, tensor: Tensor, address: int, shape: tuple[int, ...]) -> torch.Tensor:
        """A view of the device's memory."""
        memory = torch.from_numpy(self._driver.device_bytes(address, _nbytes(tensor, shape)))
        if tensor.dtype == "INT4":
            return memory.view((*shape[:-1], shape[-1] // 2))
        return memory.view(DTYPES[tensor.dtype]).view(shape)

    def _refuse(self, reason: str) -> bool:
        self.engine.log.log(self.engine.trt.ILogger.Severity.ERROR, reason)
        return False


def _nbytes(tensor: Tensor, shape: Sequence[int]) -> int:
    count = prod(shape)
    return count // 2 if tensor.dtype == "INT4" else count * DTYPES[tensor.dtype].itemsize


def _within(sizes: Sequence[int], limits: Range) -> bool:
    least, _, most = limits
    return all(low <= size <= high for low, size, high in zip(least, sizes, most, strict=True))


def _profile(record: Record, method: str) -> dict[str, Range]:
    """Input -> what the profile says of it, of shapes or of values on the host."""
    found = {}
    for event in record.build:
        if isinstance(event, Call) and event.target.kind == "profile" and event.method == method:
            name, *limits = event.args
            found[str(name)] = tuple(tuple(each) for each in limits)
    return found  # type: ignore[return-value]  # a record's values have no narrower type


def _capsule(address: int) -> Any:
    """What the bindings make of a `void const*`."""
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(address, None, None)


def _debug_tensors(record: Record) -> dict[str, str]:
    """Name -> type of the tensors that were marked."""
    marked = [event.args[0] for event in record.events if isinstance(event, Call) and event.method == "mark_debug"]
    facts = [record.tensors[tensor.index] for tensor in marked if isinstance(tensor, Ref)]
    return {fact.name: fact.dtype for fact in facts}


def _aliases(record: Record) -> dict[str, str]:
    """Output -> the cache that it updates."""
    calls = [event for event in record.events if isinstance(event, Call)]
    updates = {call.result: call.args[0] for call in calls if call.method == "add_kv_cache_update"}
    outputs = {call.result: call.target for call in calls if call.method == "get_output"}
    return {
        record.tensors[tensor.index].name: record.tensors[updates[layer].index].name
        for tensor, layer in outputs.items()
        if layer in updates and isinstance(tensor, Ref)
    }  # type: ignore[union-attr]  # as above
