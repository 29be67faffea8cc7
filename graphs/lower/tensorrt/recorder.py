"""A wrapper around TensorRT's module object that forwards every call and keeps what TensorRT was told.

    recorder = Recorder(tensorrt)
    ...                            # define and build networks with `recorder` in place of `tensorrt`
    recorder.records               # one for each network that was built

Objects that define a network (the network, layers, tensors, loops, profiles, the configuration) come as proxies, which
pass for the real classes in `isinstance`, and work as long as the recorder lives. Enumerations, `Dims`, loggers and
everything else are TensorRT's own. What TensorRT refuses, which its Python API reports as None and on the logger,
raises `RefusedError` with the logged reason.
"""

from __future__ import annotations

import ctypes
import hashlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.record import (
    Assignment,
    Call,
    Constant,
    ConstantRef,
    Enum,
    Event,
    Opaque,
    Record,
    Ref,
    TensorFact,
    Value,
)
from dsv3export.runtime.tensorrt_module import without_collector

# Class of TensorRT -> kind of reference. Classes that a module lacks are passed over; subclasses go with their base.
_KINDS = {
    "ITensor": "tensor",
    "ILayer": "layer",
    "ILoop": "loop",
    "IIfConditional": "conditional",
    "IAttention": "layer",  # it stands for several, and has inputs, outputs, attributes and a name as one has
    "INetworkDefinition": "network",
    "Builder": "builder",
    "IBuilderConfig": "config",
    "IOptimizationProfile": "profile",
}
# Bits per element; TensorRT packs INT4 and FP4 two to a byte.
_BITS = {"FLOAT": 32, "HALF": 16, "BF16": 16, "INT8": 8, "INT32": 32, "INT64": 64, "BOOL": 8, "UINT8": 8, "FP8": 8}
_BITS |= {"E8M0": 8, "INT4": 4, "FP4": 4}
# TensorRT goes on to use the first logger that it was given, when its builder is long gone.
_LISTENERS: list[Any] = []


class RefusedError(InternalError):
    """TensorRT did not take a call; the message has the call and what TensorRT logged."""


class _Journal:
    """Events of one network, or of the builder and its configurations, and the numbers of the objects therein."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.constants: list[Constant] = []
        self.memory: list[Callable[[], NDArray[np.uint8]]] = []
        self._numbers: dict[str, int] = {}

    def concerning(self, config: Ref) -> list[Event]:
        """Events on a builder's configuration and the profiles that were added to it."""
        calls = [event for event in self.events if isinstance(event, Call) and event.target == config]
        targets = {config, *(call.args[0] for call in calls if call.method == "add_optimization_profile")}
        return [event for event in self.events if event.target in targets]

    def reference(self, kind: str) -> Ref:
        number = self._numbers.get(kind, 0)
        self._numbers[kind] = number + 1
        return Ref(kind, number)


class _Proxy:
    """Stands for one object of TensorRT. `__class__` is the real one's, so that `isinstance` cannot tell them apart."""

    _real: Any
    _recorder: Recorder
    _journal: _Journal
    _reference: Ref

    def __init__(self, real: Any, recorder: Recorder, journal: _Journal, reference: Ref) -> None:
        # Weak: a cycle would leave TensorRT's objects to the garbage collector, see `without_collector`.
        for name, value in zip(_OWN, (real, weakref.proxy(recorder), journal, reference), strict=True):
            object.__setattr__(self, name, value)

    @property  # type: ignore[misc]  # of object it can be assigned to
    def __class__(self) -> Any:
        return type(object.__getattribute__(self, "_real"))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value):
            return self._recorder.wrap(value, self._journal)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._recorder.call(self, name, args, kwargs)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._recorder.assign(self, name, value)

    def __eq__(self, other: object) -> bool:
        return _unwrap(other) is self._real

    def __hash__(self) -> int:
        return id(self._real)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        """The real object lives as long as the recorder."""


_OWN = ("_real", "_recorder", "_journal", "_reference")


def _is_proxy(value: object) -> bool:
    return type(value) is _Proxy


def _unwrap(value: Any) -> Any:
    if _is_proxy(value):
        return value._real
    if isinstance(value, list | tuple) and any(_is_proxy(item) for item in value):
        return [_unwrap(item) for item in value]
    return value


class Recorder:
    """TensorRT's module object, with a memory.

    Args:
        module: `tensorrt_rtx`, `tensorrt` or their bindings.

    Attributes:
        records: A `Record` of each network that was built, in that order.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._kinds = [(getattr(module, name), kind) for name, kind in _KINDS.items() if hasattr(module, name)]
        self._proxies: dict[int, _Proxy] = {}
        self._pointers: dict[int, tuple[Any, int]] = {}
        self._outer = _Journal()
        self._errors: list[str] = []
        self.records: list[Record] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def Builder(self, logger: Any) -> Any:  # noqa: N802  # TensorRT's own name
        """As `tensorrt.Builder`. Errors that are logged through it are remembered as well."""
        with without_collector():
            return self.wrap(self._module.Builder(self._listening(logger)), self._outer)

    def Weights(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802  # TensorRT's own name
        """As `tensorrt.Weights`; of one made of an address, TensorRT's object does not tell that address."""
        real = self._module.Weights(*args, **kwargs)
        if len(args) + len(kwargs) == 3:
            self._pointers[id(real)] = (real, int(kwargs.get("ptr", args[1] if len(args) > 1 else 0)))
        return real

    def record_of(self, engine: bytes | memoryview) -> Record:
        """The record of the network that these serialized bytes were built of. Raises KeyError if there is none."""
        digest = hashlib.sha256(engine).hexdigest()
        for record in reversed(self.records):
            if record.engine_sha256 == digest:
                return record
        raise KeyError(f"no network was recorded for the engine with SHA-256 {digest}")

    def record(self, network: Any, config: Any = None) -> Record:
        """Of a complete network: what it was told, TensorRT's account of it, and constants as they are in memory now.

        Raises:
            RefusedError: TensorRT finds no shape for a tensor.
            InternalError: A constant's memory has changed since it was given to TensorRT.
        """
        journal: _Journal = network._journal
        for constant, memory in zip(journal.constants, journal.memory, strict=True):
            if not np.array_equal(memory(), constant.data):
                raise InternalError(
                    "the memory of a constant was freed or changed before the build; TensorRT keeps no copy"
                )
        members = [proxy for proxy in self._proxies.values() if proxy._journal is journal]
        return Record(
            module=self._module.__name__,
            version=self._module.__version__,
            events=list(journal.events),
            build=[] if config is None else self._outer.concerning(config._reference),
            constants=list(journal.constants),
            tensors={p._reference.index: self._fact(p._real) for p in members if p._reference.kind == "tensor"},
            layers={p._reference.index: p._real.name for p in members if p._reference.kind == "layer"},
        )

    def wrap(self, value: Any, journal: _Journal) -> Any:
        """A proxy where `value` is one of the recorded kinds; the same proxy for the same object."""
        kind = next((kind for type_, kind in self._kinds if isinstance(value, type_)), None)
        if kind is None or _is_proxy(value):
            return value
        if id(value) not in self._proxies:  # a proxy keeps its object alive, so the id is not used again
            reference = journal.reference(kind)
            self._proxies[id(value)] = _Proxy(value, self, _Journal() if kind == "network" else journal, reference)
        return self._proxies[id(value)]

    def call(self, target: _Proxy, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Forward, record, and refuse what TensorRT refused."""
        journal = target._journal
        told = tuple(self._value(argument, journal) for argument in args)
        named = {name: self._value(argument, journal) for name, argument in kwargs.items()}
        record = self.record(*args, **kwargs) if method == "build_serialized_network" else None
        self._errors.clear()
        real = getattr(target._real, method)
        with without_collector():
            result = real(*map(_unwrap, args), **{name: _unwrap(value) for name, value in kwargs.items()})
        if result is None and method.startswith("add_"):
            raise RefusedError(f"TensorRT refused {method}({_shown(told, named)}): {self._reason()}")
        if record is not None and result is not None:
            record.engine_sha256 = hashlib.sha256(result).hexdigest()
            self.records.append(record)
        wrapped = self.wrap(result, journal)
        journal.events.append(Call(target._reference, method, told, named, self._value(wrapped, journal)))
        return wrapped

    def assign(self, target: _Proxy, name: str, value: Any) -> None:
        """Forward, record, and refuse what TensorRT ignored."""
        self._errors.clear()
        with without_collector():
            setattr(target._real, name, _unwrap(value))
        told = self._value(value, target._journal)
        if self._errors:
            raise RefusedError(f"TensorRT refused {target._reference.kind}.{name} = {told}: {self._reason()}")
        target._journal.events.append(Assignment(target._reference, name, told))

    def _reason(self) -> str:
        return "; ".join(self._errors) or "it logged no reason"

    def _value(self, value: Any, journal: _Journal) -> Value:
        if _is_proxy(value):
            reference: Ref = value._reference
            return reference
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.ndarray | self._module.Weights):
            return self._constant(value, journal)
        if isinstance(value, np.integer | np.floating):
            return value.item()
        if hasattr(type(value), "__members__"):
            return Enum(type(value).__name__, value.name)
        if isinstance(value, list | tuple | self._module.Dims | self._module.Permutation):
            return tuple(self._value(item, journal) for item in value)
        return Opaque(type(value).__name__)

    def _constant(self, weights: Any, journal: _Journal) -> ConstantRef:
        dtype, count, memory = self._weight_memory(weights)
        journal.constants.append(Constant(dtype, count, memory().copy()))
        journal.memory.append(memory)
        return ConstantRef(len(journal.constants) - 1)

    def _weight_memory(self, weights: Any) -> tuple[str, int, Callable[[], NDArray[np.uint8]]]:
        if isinstance(weights, np.ndarray):
            if not weights.flags.c_contiguous:
                raise InternalError("a constant's array is not contiguous; TensorRT reads its memory in order")
            weights = self._module.Weights(weights)
        count, dtype = int(weights.size), str(weights.dtype.name)
        size = (count * _BITS[dtype] + 7) // 8
        _, address = self._pointers.get(id(weights), (None, 0))
        if not address and size:
            address = weights.numpy().ctypes.data
        return dtype, count, lambda: _bytes_at(address, size)

    def _fact(self, tensor: Any) -> TensorFact:
        self._errors.clear()
        try:
            return TensorFact(tensor.name, tensor.dtype.name, tuple(tensor.shape))
        except (RuntimeError, ValueError) as error:
            raise RefusedError(f"TensorRT finds no shape for tensor {tensor.name!r}: {self._reason()}") from error

    def _listening(self, logger: Any) -> Any:
        errors, module, severities = self._errors, self._module, self._module.ILogger.Severity

        class Listener(module.ILogger):  # type: ignore[misc, name-defined]  # TensorRT's classes are not known to mypy
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                # Without a driver each error is followed by one that says so, which explains nothing.
                if severity in (severities.INTERNAL_ERROR, severities.ERROR) and "Cuda Runtime" not in message:
                    errors.append(message)
                logger.log(severity, message)

        _LISTENERS.append(Listener())
        return _LISTENERS[-1]


def _bytes_at(address: int, size: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)) if size else np.empty(0, np.uint8)


def _shown(args: tuple[Value, ...], kwargs: Mapping[str, Value]) -> str:
    return ", ".join([*map(str, args), *(f"{name}={value}" for name, value in kwargs.items())])
