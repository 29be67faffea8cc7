"""The engines of a program on a device: checked before they are trusted, and their execution contexts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dsv3export.engine.program import PHASES, Kind, Phase, Port, Program
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import BackendError, EngineError
from dsv3export.runtime.device import Device, DeviceBuffer
from dsv3export.runtime.tensorrt.kernels import KernelCache
from dsv3export.runtime.tensorrt.log import make_log
from dsv3export.runtime.tensorrt.values import Sizes, port_shape
from dsv3export.runtime.tensorrt_module import PACKAGES, FlavourName, without_collector

# safetensors name -> member of TensorRT's DataType.
TYPES: Mapping[str, str] = {
    "F32": "FLOAT", "F16": "HALF", "BF16": "BF16", "F8_E4M3": "FP8", "I4": "INT4", "I8": "INT8", "U8": "UINT8",
    "I32": "INT32", "I64": "INT64", "BOOL": "BOOL",
}  # fmt: skip


class UnsupportedDeviceError(BackendError):
    """TensorRT-RTX does not run on this kind of device."""


class KindContext:
    """An engine of one layer kind, ready to be run at some sizes at a time."""

    def __init__(self, context: Any, kind: Kind, what: str, log: Any) -> None:
        self._context, self._kind, self._what, self._log = context, kind, what, log
        self._inputs = {port.name for port in (*kind.inputs, *kind.weights)}
        self._sizes: dict[str, int] = {}
        self._listener: Any = None

    def enqueue(self, sizes: Sizes, addresses: Mapping[str, int], stream: int) -> None:
        """Puts one call into a stream.

        Args:
            addresses: Of every tensor of the kind; of those that TensorRT reads on the host, of host memory, which is
                read at once.

        Raises BackendError with what TensorRT says.
        """
        if sizes != self._sizes:
            for port in self._kind.inputs:
                if not all(isinstance(size, int) for size in port.shape):
                    self._must(self._context.set_input_shape(port.name, port_shape(port, sizes)), port.name)
            self._sizes = dict(sizes)
        for name, address in addresses.items():
            self._must(self._context.set_tensor_address(name, address), name)
        self._must(self._context.execute_async_v3(stream), "execution")

    def show(self, listener: Any, names: Iterable[str]) -> None:
        """Hands debug tensors to an `IDebugListener`, which this keeps, at every call from now on.

        Raises BackendError where the engine was not built to show one of them.
        """
        self._listener = listener
        self._must(self._context.set_debug_listener(listener), "a debug listener")
        for name in names:
            self._must(self._context.set_tensor_debug_state(name, True), f"debug tensor {name}")

    def can_be_captured(self, stream: int) -> bool:
        """Whether work at these sizes may become part of a graph; full TensorRT does not say, and is tried."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"TensorRT failed in {self._what}: {what}", got=self._log.reason())


class EngineLoader:
    """Loads engines of a flavour on a device, and makes contexts of them.

    Args:
        trt: The flavour's module.
        rtx: Whether it is TensorRT-RTX, which compiles kernels when an engine runs.
        kernels: Where it keeps them.
    """

    def __init__(self, trt: Any, rtx: bool, kernels: KernelCache) -> None:
        self._trt, self._rtx, self._kernels = trt, rtx, kernels
        self._log = make_log(trt)
        self._runtime = trt.Runtime(self._log)

    @without_collector()
    def load(self, data: bytes, kind: Kind, what: str) -> Any:
        """An `ICudaEngine`.

        Raises:
            BackendError: This TensorRT or this device does not run it.
            EngineError: It has other tensors than its kind.
        """
        self._check_validity(data, what)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(f"{what}: TensorRT refuses it", got=self._log.reason(), fix=REBUILD)
        self._check_tensors(engine, kind, what)
        return engine

    @without_collector()
    def context(self, engine: Any, kind: Kind, phase: Phase, scratch: DeviceBuffer, what: str) -> KindContext:
        """A new execution context with `scratch`, of the engine's `device_memory_size_v2` at least, for memory.

        Raises BackendError.
        """
        own_memory = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._rtx:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(own_memory)
            # A graph of a decode step is captured once per length: kernels for its sizes must be there by then.
            kinds = self._trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if phase == "decode" else kinds.LAZY
            self._kernels.attach(config)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(own_memory)
        if context is None:
            raise BackendError(f"{what}: no execution context", got=self._log.reason())
        context.set_device_memory(scratch.address, scratch.nbytes)
        return KindContext(context, kind, what, self._log)

    def _check_validity(self, data: bytes, what: str) -> None:
        """TensorRT-RTX can say why an engine does not run here."""
        ask = getattr(self._runtime, "get_engine_validity", None)
        if ask is None:
            return
        verdict, reasons = ask(data)
        if verdict == self._trt.EngineValidity.INVALID:
            kinds = self._trt.EngineInvalidityDiagnostics.__members__
            named = [name for name, member in kinds.items() if int(member.value) & int(reasons)]
            error = UnsupportedDeviceError if "UNSUPPORTED_CC" in named else BackendError
            raise error(
                f"{what}: TensorRT-RTX does not run it here", got=", ".join(named) or self._log.reason(),
                fix=_FIXES.get(named[0] if named else "", REBUILD),
            )  # fmt: skip

    def _check_tensors(self, engine: Any, kind: Kind, what: str) -> None:
        ports = {port.name: port for port in (*kind.inputs, *kind.weights, *kind.outputs)}
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        if set(names) != ports.keys():
            odd = sorted(set(names) ^ ports.keys())[0]
            raise EngineError(f"{what}: tensors", expected="those of the program", got=f"{odd!r} amiss", fix=REBUILD)
        for name in names:
            expected, got = _described(ports[name]), self._describe(engine, name)
            if got != expected:
                raise EngineError(f"{what}: tensor {name!r}", expected=expected, got=got, fix=REBUILD)
        for output, given in kind.aliases.items():
            shared = engine.get_aliased_input_tensor(output)
            # Full TensorRT does not say so of a plugin's output.
            if shared != given and (self._rtx or shared is not None):
                expected, got = f"that shares the memory of {given!r}", repr(shared)
                raise EngineError(f"{what}: output {output!r}", expected=expected, got=got, fix=REBUILD)

    def _describe(self, engine: Any, name: str) -> str:
        shape = [int(size) for size in engine.get_tensor_shape(name)]
        on_host = engine.get_tensor_location(name) == self._trt.TensorLocation.HOST
        return f"{engine.get_tensor_dtype(name).name} {shape}{' on the host' if on_host else ''}"


class ProgramEngines:
    """All engines of a program, loaded.

    Args:
        trt: The flavour's module.
        kernels: Where TensorRT-RTX keeps the kernels that it compiles for this device.

    Raises:
        BackendError: This TensorRT or this device does not run them.
        EngineError: They are damaged, or have other tensors than the program says.
    """

    def __init__(self, files: EngineFiles, program: Program, trt: Any, device: Device, kernels: KernelCache) -> None:
        self._program, self._where = program, f"engine {files.path}"
        check_version(self._where, program, str(trt.__version__))
        check_device(self._where, program, device)
        self._loader = EngineLoader(trt, program.flavour == "tensorrt-rtx", kernels)
        self._engines = {(name, phase): self._load(files, name, phase) for name in program.kinds for phase in PHASES}

    @property
    def scratch_bytes(self) -> int:
        """What one call needs at most beside its tensors; calls run one after the other and share it."""
        return max(int(engine.device_memory_size_v2) for engine in self._engines.values())

    def contexts(self, phase: Phase, scratch: DeviceBuffer) -> dict[str, KindContext]:
        """A new execution context for each kind, all of them with `scratch`, which has to outlive them."""
        return {
            name: self._loader.context(self._engines[name, phase], kind, phase, scratch, f"{name}.{phase}")
            for name, kind in self._program.kinds.items()
        }

    def _load(self, files: EngineFiles, name: str, phase: Phase) -> Any:
        kind = self._program.kinds[name]
        graph = kind.engines[phase]
        return self._loader.load(files.graph(graph), kind, f"{self._where}: {graph}")


_FIXES = {
    "VERSION_MISMATCH": "Rebuild the engine with the TensorRT-RTX that is installed here.",
    "UNSUPPORTED_CC": "TensorRT-RTX runs on RTX GPUs; rebuild with --backend tensorrt for others.",
    "OLD_CUDA_DRIVER": "Update the NVIDIA driver.",
    "OLD_CUDA_RUNTIME": "Update the packages of CUDA.",
    "CUDA_ERROR": "Check the driver with nvidia-smi.",
}


def check_version(where: str, program: Program, installed: str) -> None:
    """Raises BackendError: TensorRT reads the engines of its own version only."""
    if program.version != installed:
        package = PACKAGES[flavour_of(program)].modules[0]
        raise BackendError(
            f"{where}: {package}", expected=f"version {program.version}, which built it", got=installed,
            fix="Rebuild the engine, or install that version.",
        )  # fmt: skip


def check_device(where: str, program: Program, device: Device) -> None:
    """Raises BackendError where the engines were built for other devices, e.g. ``sm89``."""
    major, minor = device.compute_capability
    here = f"sm{major}{minor}"
    if program.devices and here not in program.devices:
        raise BackendError(
            f"{where}: device", expected=" or ".join(program.devices), got=f"{here} ({device.name})",
            fix=f"Rebuild it with --device {here}.",
        )  # fmt: skip


def flavour_of(program: Program) -> FlavourName:
    """Which TensorRT it is for."""
    return "tensorrt-rtx" if program.flavour == "tensorrt-rtx" else "tensorrt"


def _described(port: Port) -> str:
    shape = [size if isinstance(size, int) else -1 for size in port.shape]
    return f"{TYPES[port.dtype]} {shape}{' on the host' if port.host else ''}"
