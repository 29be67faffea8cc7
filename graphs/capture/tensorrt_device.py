"""The layer kinds of a TensorRT engine on their GPU, and what is inside them by way of debug tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3export.dtypes import NUMPY
from dsv3export.engine.manifest import WeightEntry
from dsv3export.engine.program import PROGRAM, Call, Kind, Phase, Program
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError
from dsv3export.graphs.capture.tensorrt import Array, Results, TensorRTEngine
from dsv3export.graphs.trace import Part
from dsv3export.runtime.device import Device, DeviceBuffer
from dsv3export.runtime.tensorrt.debug import make_listener
from dsv3export.runtime.tensorrt.engines import EngineLoader, KindContext, check_device, check_version, flavour_of
from dsv3export.runtime.tensorrt.kernels import KernelCache
from dsv3export.runtime.tensorrt.values import Sizes, port_bytes, port_shape
from dsv3export.runtime.tensorrt.weights import DeviceWeights, wanted_weights
from dsv3export.runtime.tensorrt_module import load_tensorrt, without_collector

_NAMES = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class _Engines:
    """A layer kind for one phase: the engine's own, and a copy that shows its values (value -> debug tensor).

    `scratch` is the memory of both contexts.
    """

    own: KindContext
    showing: KindContext
    shown: Mapping[str, str]
    listener: Any
    scratch: DeviceBuffer


class DeviceMachine:
    """Computes an engine's calls on a GPU.

    Each call runs twice: through the engine's own file, whose outputs are what the layer hands on, and through a copy
    that is built here of the same network with its values as debug tensors. The engine itself has no marks, and is as
    fast as ever; the copy may differ in the last bits, as TensorRT fuses nothing across a marked value.

    Args:
        trt: The flavour's module.
    """

    def __init__(self, engine: TensorRTEngine, trt: Any, device: Device) -> None:
        self._engine, self._trt, self._device = engine, trt, device
        program = engine.programs["trunk"]
        where = f"engine {engine.files.path}"
        check_version(where, program, str(trt.__version__))
        check_device(where, program, device)
        self.label = f"{_NAMES[program.flavour]} on {device.name}"
        self._loader = EngineLoader(trt, program.flavour == "tensorrt-rtx", KernelCache(None))
        self._stream = device.stream()
        self._entries = {
            entry.name: entry for each in engine.programs.values() for entry in wanted_weights(engine.files, each)
        }
        self._loaded: dict[tuple[Part, str, Phase], _Engines] = {}

    @classmethod
    def of(
        cls, files: EngineFiles, device: Device | None = None, trt: Any = None
    ) -> tuple[TensorRTEngine, DeviceMachine]:
        """An engine and the first GPU. Raises BackendError where a GPU, its driver or TensorRT is missing."""
        program = Program.from_json(files.graph(PROGRAM))
        try:
            device = device or Device()
            trt = trt or load_tensorrt(flavour_of(program))
        except BackendError as missing:
            instead = (
                "; diff --replay computes on the CPU what TensorRT was told" if program.flavour != "tensorrt" else ""
            )
            raise BackendError(
                f"engine {files.path}: layer by layer", expected=f"{_NAMES[program.flavour]} and its GPU",
                got=f"{missing.what}: {missing.got}", fix=f"Run it where the GPU is{instead}.",
            ) from missing  # fmt: skip
        engine = TensorRTEngine.of(files, trt)
        return engine, cls(engine, trt, device)

    @contextmanager
    def open(self, part: Part, calls: Sequence[Call]) -> Iterator[_OnDevice]:
        """See `Machine.open`."""
        self._device.make_current()
        names = dict.fromkeys(name for call in calls for name in call.weights.values())
        entries: list[WeightEntry] = [self._entries[name] for name in names]
        weights = DeviceWeights(self._engine.files, entries, self._device, self._stream)
        try:
            yield _OnDevice(self, weights)
        finally:
            self._stream.drain()

    @without_collector()
    def run(
        self, part: Part, call: Call, phase: Phase, sizes: Sizes, inputs: Mapping[str, Array], weights: DeviceWeights
    ) -> Results:
        """One call, with weights that lie on the device."""
        kind, engines = self._engine.kinds[part][call.kind].known, self._engines(part, call.kind, phase)
        placed = {formal: weights.addresses[name] for formal, name in call.weights.items()}
        caches = [inputs[name] for name in kind.aliases.values()]
        before = [cache.copy() for cache in caches]
        outputs = self._enqueue(engines.own, kind, sizes, inputs, placed)
        after = [cache.copy() for cache in caches]
        for cache, rows in zip(caches, before, strict=True):
            cache[...] = rows
        self._enqueue(engines.showing, kind, sizes, inputs, placed)
        for cache, rows in zip(caches, after, strict=True):
            cache[...] = rows
        seen = engines.listener.take()
        if missing := sorted(set(engines.shown.values()) - seen.keys()):
            raise BackendError(f"{call.kind}: TensorRT has not shown the debug tensor {missing[0]}")
        return Results(outputs, {value: seen[name] for value, name in engines.shown.items()})

    def _enqueue(
        self,
        context: KindContext,
        kind: Kind,
        sizes: Sizes,
        inputs: Mapping[str, Array],
        weights: Mapping[str, int],
    ) -> dict[str, Array]:
        """Runs a context; its outputs by name. Caches among the inputs get what the device has made of them."""
        memory = _Memory(self._device, self._stream)
        try:
            addresses = {port.name: memory.put(inputs[port.name], port.host) for port in kind.inputs}
            for port in kind.outputs:
                shared = kind.aliases.get(port.name)
                addresses[port.name] = addresses[shared] if shared else memory.empty(port_bytes(port, sizes))
            context.enqueue(sizes, {**addresses, **weights}, self._stream.address)
            for name in kind.aliases.values():
                inputs[name][...] = memory.fetch(addresses[name], inputs[name].shape, inputs[name].dtype)
            return {
                port.name: memory.fetch(addresses[port.name], port_shape(port, sizes), NUMPY[port.dtype])
                for port in kind.outputs
                if port.name not in kind.aliases
            }
        finally:
            self._stream.drain()

    def _engines(self, part: Part, name: str, phase: Phase) -> _Engines:
        """Loaded, and the copy built, when they are first asked for."""
        key = part, name, phase
        if key not in self._loaded:
            layer, files = self._engine.kinds[part][name], self._engine.files
            what = f"engine {files.path}: {layer.known.engines[phase]}"
            own = self._loader.load(files.graph(layer.known.engines[phase]), layer.known, what)
            built = layer.built_to_show(phase)
            copy = self._loader.load(built.data, layer.known, f"{what}, with debug tensors")
            scratch = self._device.allocate(max(int(engine.device_memory_size_v2) for engine in (own, copy)))
            first = self._loader.context(own, layer.known, phase, scratch, what)
            showing = self._loader.context(copy, layer.known, phase, scratch, what)
            listener = make_listener(self._trt, self._device)
            showing.show(listener, built.shown.values())
            self._loaded[key] = _Engines(first, showing, built.shown, listener, scratch)
        return self._loaded[key]


class _OnDevice:
    """`OpenKinds`."""

    def __init__(self, machine: DeviceMachine, weights: DeviceWeights) -> None:
        self._machine, self._weights = machine, weights

    def run(self, part: Part, call: Call, phase: Phase, sizes: Sizes, inputs: Mapping[str, Array]) -> Results:
        return self._machine.run(part, call, phase, sizes, inputs, self._weights)


class _Memory:
    """Buffers of one call; they must outlive its work."""

    def __init__(self, device: Device, stream: Any) -> None:
        self._device, self._stream = device, stream
        self._kept: list[Any] = []

    def empty(self, nbytes: int) -> int:
        buffer = self._device.allocate(nbytes)
        self._kept.append(buffer)
        return buffer.address

    def put(self, array: Array, on_host: bool) -> int:
        """The address of a copy, on the device or on the host."""
        data = np.ascontiguousarray(array)
        self._kept.append(data)
        if on_host:
            return int(data.ctypes.data)
        staging = self._device.pinned(data.nbytes)
        staging.bytes[:] = data.reshape(-1).view(np.uint8)
        self._kept.append(staging)
        address = self.empty(data.nbytes)
        self._stream.copy_in(address, staging, data.nbytes)
        return address

    def fetch(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Waits for everything before."""
        count = int(np.prod(shape))
        staging = self._device.pinned(count * dtype.itemsize)
        self._stream.copy_out(staging, address, count * dtype.itemsize)
        self._stream.synchronise()
        return staging.view(dtype, count).reshape(shape).copy()
