"""One op on TensorRT or TensorRT-RTX: a tiny engine, built as those of layer kinds are, and run if there is a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from dsv3export.dtypes import NUMPY
from dsv3export.engine.program import Kind, Limits, Port
from dsv3export.errors import BackendError
from dsv3export.graphs.conformance.calls import CAPACITY, Array, OpCall
from dsv3export.graphs.conformance.one_op import weight_array
from dsv3export.graphs.lower.tensorrt.emit import LENGTH, Types
from dsv3export.graphs.lower.tensorrt.engines import BuiltEngine, Target, build_engine
from dsv3export.graphs.lower.tensorrt.flavour import FLAVOURS
from dsv3export.graphs.lower.tensorrt.prepare import prepare
from dsv3export.graphs.lower.tensorrt.rows import rows_for
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.plugins import DOMAIN
from dsv3export.runtime.device import Device, DeviceBuffer, Stream
from dsv3export.runtime.tensorrt.engines import EngineLoader, KindContext, UnsupportedDeviceError
from dsv3export.runtime.tensorrt.kernels import KernelCache
from dsv3export.runtime.tensorrt.values import port_bytes, port_shape
from dsv3export.runtime.tensorrt_module import FlavourName, load_tensorrt

_COMPUTE = {"fp32": "F32", "bf16": "BF16", "f16": "F16"}
_OUT = "_out"
_LIMITS = Limits(slots=3, draft=0, chunk=12, capacity=CAPACITY)


class TensorRTOps:
    """Implements `OpBackend`.

    Args:
        flavour: Which TensorRT.
        trt: Its module; None finds it.
        device: Where to run; None takes the first GPU, if there is one.

    Raises BackendError where the flavour's package is missing.
    """

    int_activations: Literal["none", "int8"] = "none"
    typed_caches, with_step = True, False

    def __init__(self, flavour: FlavourName, trt: Any = None, device: Device | None = None) -> None:
        self._trt = trt or load_tensorrt(flavour)
        self.name: str = flavour
        self.version = str(self._trt.__version__)
        self._flavour = FLAVOURS[flavour]
        self._rows = rows_for(self._flavour)
        self.why_not_run = ""
        self._device = device
        if device is None:
            try:
                self._device = Device()
            except BackendError as error:
                self.why_not_run = str(error)

    def refusal(self, call: OpCall) -> str:
        """What the flavour has no row for: a cache in FP8, which TensorRT updates in no way."""
        known = (DOMAIN, call.op.name) in self._rows
        return "" if known else f"{self.name} has no {call.op.name}"

    def computes_in(self, call: OpCall) -> str:
        """Activations in the weights' type where that is a float one, else in bfloat16; a router in float32."""
        return call.precision if call.precision in _COMPUTE else "bf16"

    def build(self, call: OpCall, graph: GraphWithWeights) -> _DeviceOp | _NotRun:
        """See `OpBackend.build`."""
        prepared = prepare(graph, self._rows)
        (function,) = prepared.model.functions.values()
        compute = _COMPUTE[self.computes_in(call)]
        target = Target(self._trt, self._flavour, self._rows, Types(compute, compute, CAPACITY), _LIMITS)
        # Apart from the names of the op's own values, which an output may be a cast of.
        results = [f"{port.name}{_OUT}" for port in call.op.outputs]
        built = build_engine(target, function, results, call.phase)
        if self._device is None:
            return _NotRun(self.why_not_run)
        weights = {name: weight_array(expr, call.weights) for name, expr in prepared.weights.items()}
        try:
            return _DeviceOp(self._trt, self.name == "tensorrt-rtx", self._device, built, call, weights)
        except UnsupportedDeviceError as error:
            self._device, self.why_not_run = None, str(error)
            return _NotRun(self.why_not_run)


class _NotRun:
    """An engine that there is no device for."""

    def __init__(self, why: str) -> None:
        self._why = why

    def run(self) -> Mapping[str, Array]:
        """See `BuiltOp.run`."""
        raise BackendError(self._why)


class _DeviceOp:
    """An engine of one op with its inputs and weights on the device."""

    def __init__(
        self, trt: Any, rtx: bool, device: Device, built: BuiltEngine, call: OpCall, weights: Mapping[str, Array]
    ) -> None:
        self._device, self._call, self._kind, self._weights = device, call, built.kind, weights
        loader = EngineLoader(trt, rtx, KernelCache(None))
        self._engine = loader.load(built.data, self._kind, str(call))
        self._scratch = device.allocate(int(self._engine.device_memory_size_v2))
        self._context: KindContext = loader.context(self._engine, self._kind, call.phase, self._scratch, str(call))
        batch, new = call.step
        self._sizes = {"B": batch, "S": new, "R": batch * new}

    def run(self) -> Mapping[str, Array]:
        """See `BuiltOp.run`; each time with fresh copies of the inputs."""
        stream = self._device.stream()
        length = np.array([int(self._call.inputs["start"].max()) + self._sizes["S"]] if self._has_length() else [0])
        try:
            buffers = {port.name: self._bound(port, stream) for port in _tensors(self._kind) if not port.host}
            addresses = {name: buffer.address for name, buffer in buffers.items()} | {
                output: buffers[given].address for output, given in self._kind.aliases.items()
            }
            if self._has_length():
                addresses[LENGTH] = length.ctypes.data
            self._context.enqueue(self._sizes, addresses, stream.address)
            outputs = [(port, self._fetch(port, addresses[port.name], stream)) for port in self._kind.outputs]
        finally:
            stream.drain()
        return {port.name.removesuffix(_OUT): self._as_defined(port, array) for port, array in outputs}

    def _has_length(self) -> bool:
        return any(port.name == LENGTH for port in self._kind.inputs)

    def _bound(self, port: Port, stream: Stream) -> DeviceBuffer:
        """Memory for a tensor, with its content where it is an input."""
        nbytes = port_bytes(port, self._sizes)
        buffer = self._device.allocate(nbytes)
        array = self._weights.get(port.name, self._call.run_time.get(port.name))
        if array is not None:
            staging = self._device.pinned(nbytes)
            staging.bytes[:] = np.ascontiguousarray(_stored(array, port)).reshape(-1).view(np.uint8)
            stream.copy_in(buffer.address, staging, nbytes)
            stream.synchronise()
        return buffer

    def _fetch(self, port: Port, address: int, stream: Stream) -> Array:
        nbytes = port_bytes(port, self._sizes)
        staging = self._device.pinned(nbytes)
        stream.copy_out(staging, address, nbytes)
        stream.synchronise()
        dtype = NUMPY[port.dtype]
        return staging.view(dtype, nbytes // dtype.itemsize).reshape(port_shape(port, self._sizes)).copy()

    def _as_defined(self, port: Port, array: Array) -> Array:
        """An output in the op's shape and type: a cache without the axis that TensorRT wants."""
        (defined,) = [each for each in self._call.op.outputs if f"{each.name}{_OUT}" == port.name]
        inner = array[:, 0] if port.name in self._kind.aliases else array
        return inner.astype(np.int64 if defined.dtypes[0] == "int64" else np.float32)


def _tensors(kind: Kind) -> tuple[Port, ...]:
    """All that need memory of their own."""
    return (*kind.inputs, *kind.weights, *(port for port in kind.outputs if port.name not in kind.aliases))


def _stored(array: Array, port: Port) -> Array:
    """In the engine's type; numbers that it takes by their bits stay as they are."""
    return array.astype(NUMPY[port.dtype]) if array.dtype == np.float32 else array
