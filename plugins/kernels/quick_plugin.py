"""Plugins as TensorRT's "quickly deployable" ones: what ``tensorrt.plugin`` wants of each, made from its `Plugin`.

The traps of that interface are met here once. It reads signatures, so each function gets one made for it. Extra
arguments must be `SymInt32` of Python's own int. ``2 * size`` is not defined where ``size * 2`` is. Attributes are not
stored in an engine: a kernel has them compiled in. An engine keeps one kernel for each choice of types and tactic, so
that what may differ between shapes is an argument.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import GenericAlias, ModuleType
from typing import Any, Union

from dsv3export.errors import InternalError
from dsv3export.plugins.kernels.cache import compile_all, compiled
from dsv3export.plugins.kernels.calls import check_inputs
from dsv3export.plugins.kernels.launcher import Launcher
from dsv3export.plugins.kernels.plugin import Attributes, Plugin, TensorType, Tile
from dsv3export.plugins.kernels.sizes import Size, known
from dsv3export.runtime.device import Device

NAMESPACE = "dsv3"
SHARED_LIMIT = 48 * 1024
"""Bytes of shared memory that TensorRT's launches certainly allow; more is undocumented."""

DTYPES = {
    "FLOAT": "F32",
    "HALF": "F16",
    "BF16": "BF16",
    "FP8": "F8_E4M3",
    "INT64": "I64",
    "INT32": "I32",
    "INT8": "I8",
    "UINT8": "U8",
}
"""TensorRT's name of a type -> safetensors dtype name."""
_TENSORRT = {name: tensorrt for tensorrt, name in DTYPES.items()}


def plugin_module(trt: ModuleType) -> ModuleType:
    """``tensorrt.plugin`` of the module that `load_tensorrt` found; its own code imports it as ``tensorrt``."""
    sys.modules.setdefault("tensorrt", trt)
    try:
        return import_module("tensorrt.plugin")
    except ModuleNotFoundError:
        return import_module(f"{trt.__name__}.plugin")


def register(trt: ModuleType, plugin: Plugin, target: Callable[[], int]) -> None:
    """Registers a plugin with TensorRT, to be used as ``tensorrt.plugin.op.dsv3.<name>``.

    Args:
        trt: The module of TensorRT.
        plugin: Registered once in a process.
        target: Gives the compute capability that an engine is being built for, e.g. 90.
    """
    trtp = plugin_module(trt)
    quick = _QuickPlugin(trt, trtp, plugin, target)
    identity = f"{NAMESPACE}::{plugin.name}"
    # Lazily: TensorRT's registry is asked when a network first uses the plugin.
    trtp.register(identity, lazy_register=True)(quick.describe())
    trtp.autotune(identity)(quick.autotune())
    trtp.aot_impl(identity)(quick.ahead_of_time())
    trtp.impl(identity)(quick.just_in_time())


class _QuickPlugin:
    """Makes the four functions of a plugin."""

    def __init__(self, trt: ModuleType, trtp: ModuleType, plugin: Plugin, target: Callable[[], int]) -> None:
        self._trt, self._trtp, self._plugin, self._target = trt, trtp, plugin, target
        self._symbols = _Symbols(trtp)
        self._made: Launcher | None = None

    def describe(self) -> Callable[..., Any]:
        """TensorDescs and attributes -> TensorDescs of the outputs."""

        def describe(*tensors: Any, **attributes: Any) -> Any:
            types = [self._type(tensor) for tensor in tensors]
            check_inputs(self._plugin, types)
            aliases = dict(self._plugin.aliases)
            return tuple(
                tensors[aliases[place]].aliased() if place in aliases else self._description(result)
                for place, result in enumerate(self._plugin.outputs(types, attributes))
            )

        descriptions = self._trtp.TensorDesc
        return self._signed(
            describe, descriptions, (), GenericAlias(tuple, (descriptions,) * len(self._plugin.results))
        )

    def autotune(self) -> Callable[..., Any]:
        """The types as they are, and the tactics whose kernels fit into shared memory."""

        def autotune(*arguments: Any) -> Any:
            inputs, attributes, outputs = self._split(arguments)
            names = ", ".join(tensor.dtype.name for tensor in (*inputs, *outputs))
            return [self._trtp.AutoTuneCombination(names, "LINEAR", self._fitting(inputs, attributes, outputs))]

        outputs = ("outputs", GenericAlias(tuple, self._trtp.TensorDesc))
        return self._signed(
            autotune, self._trtp.TensorDesc, (outputs,), GenericAlias(list, self._trtp.AutoTuneCombination)
        )

    def ahead_of_time(self) -> Callable[..., Any]:
        """The kernel, how to launch it, and its integers as expressions over the shapes."""

        def ahead_of_time(*arguments: Any) -> Any:
            *rest, tactic = arguments
            inputs, attributes, outputs = self._split(rest)
            types, results = [self._type(tensor) for tensor in inputs], [self._type(tensor) for tensor in outputs]
            launch = self._plugin.launch(types, results, attributes, self._tile(tactic), self._target())
            kernel = compiled(launch.build, self._target())
            parameters = self._trtp.KernelLaunchParams()
            for axis, size in zip("xyz", launch.grid, strict=True):
                setattr(parameters, f"grid_{axis}", self._symbols.expression(size))
            parameters.block_x = kernel.threads
            parameters.shared_mem = kernel.shared
            extra = self._trtp.SymIntExprs(len(launch.integers))
            for place, size in enumerate(launch.integers):
                extra[place] = self._trtp.SymInt32(self._symbols.expression(size))
            return kernel.name, kernel.ptx, parameters, extra

        text = Union[str, bytes]  # noqa: UP007 - tensorrt.plugin compares with this form on Python 3.10
        result = GenericAlias(tuple, (text, text, self._trtp.KernelLaunchParams, self._trtp.SymExprs))
        more = (("outputs", GenericAlias(tuple, self._trtp.TensorDesc)), ("tactic", int))
        return self._signed(ahead_of_time, self._trtp.TensorDesc, more, result)

    def just_in_time(self) -> Callable[..., Any]:
        """The same launch, made by Python when the engine runs: for debugging."""

        def just_in_time(*arguments: Any) -> None:
            *rest, stream, tactic = arguments
            inputs, attributes, outputs = self._split(rest)
            launcher = self._launcher()
            types = [self._concrete(tensor) for tensor in inputs]
            results = [self._concrete(tensor) for tensor in outputs]
            launch = self._plugin.launch(types, results, attributes, self._tile(tactic), launcher.capability)
            launcher.launch(
                compiled(launch.build, launcher.capability),
                (known(launch.grid[0]), known(launch.grid[1]), known(launch.grid[2])),
                [tensor.data_ptr for tensor in inputs],
                [known(size) for size in launch.integers],
                [tensor.data_ptr for tensor in outputs],
                stream,
            )

        more = (("outputs", GenericAlias(tuple, self._trtp.Tensor)), ("stream", int), ("tactic", int))
        return self._signed(just_in_time, self._trtp.Tensor, more, None)

    def _launcher(self) -> Launcher:
        if self._made is None:
            self._made = Launcher(Device())
        return self._made

    def _tile(self, tactic: int) -> Tile:
        """Tactics count from 1; 0 is TensorRT's own number for no choice."""
        return self._plugin.tiles[max(tactic - 1, 0)]

    def _fitting(self, inputs: Sequence[Any], attributes: Attributes, outputs: Sequence[Any]) -> list[int]:
        # TensorRT lends no builder of expressions here, so that the shapes are those that it will time.
        types, results = [self._timed(tensor) for tensor in inputs], [self._timed(tensor) for tensor in outputs]
        target, tactics = self._target(), range(1, len(self._plugin.tiles) + 1)
        launches = [self._plugin.launch(types, results, attributes, self._tile(tactic), target) for tactic in tactics]
        kernels = compile_all([(launch.build, target) for launch in launches])
        fitting = [tactic for tactic, kernel in zip(tactics, kernels, strict=True) if kernel.shared <= SHARED_LIMIT]
        if not fitting:
            raise InternalError(f"no kernel of {self._plugin.name} fits into {SHARED_LIMIT} bytes of shared memory")
        return fitting

    def _split(self, arguments: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any], Sequence[Any]]:
        """Inputs, attributes by name, outputs."""
        count = len(self._plugin.inputs)
        names = [name for name, _ in self._plugin.attributes]
        return arguments[:count], dict(zip(names, arguments[count:-1], strict=True)), arguments[-1]

    def _type(self, description: Any) -> TensorType:
        shape = tuple(self._symbols.size(expression) for expression in description.shape_expr)
        return TensorType(DTYPES[description.dtype.name], shape)

    def _timed(self, description: Any) -> TensorType:
        shape = description.shape.opt if description.shape.is_dynamic else description.shape
        return TensorType(DTYPES[description.dtype.name], tuple(int(size) for size in shape))

    def _concrete(self, tensor: Any) -> TensorType:
        return TensorType(DTYPES[tensor.dtype.name], tuple(int(size) for size in tensor.shape))

    def _description(self, result: TensorType) -> Any:
        shape = tuple(self._symbols.expression(size) for size in result.shape)
        return self._trtp.from_shape_expr(shape, getattr(self._trt.DataType, _TENSORRT[result.dtype]))

    def _signed(
        self, function: Callable[..., Any], tensor: type, more: Sequence[tuple[str, Any]], result: Any
    ) -> Callable[..., Any]:
        """The function with the signature that TensorRT reads: tensors, attributes, `more`."""
        tensors = [(port.name, tensor) for port in self._plugin.inputs]
        parameters = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
            for name, annotation in (*tensors, *self._plugin.attributes, *more)
        ]
        function.__signature__ = inspect.Signature(parameters, return_annotation=result)  # type: ignore[attr-defined]
        return function


class _Symbols:
    """Sizes as `Size` and as ``ShapeExpr``, both ways."""

    def __init__(self, trtp: ModuleType) -> None:
        self._trtp = trtp

    def size(self, expression: Any) -> Size:
        """A number where the build knows it."""
        if not expression.is_fake and expression.is_constant:
            return int(expression.constant_value())
        return _Symbol(expression, self._trtp)

    def expression(self, size: Size) -> Any:
        """A ``ShapeExpr``, or Python's own int for a number: numpy's would become nothing at all."""
        return size.expression if isinstance(size, _Symbol) else int(known(size))


class _Symbol:
    """Implements `Expression` on a ``ShapeExpr``."""

    def __init__(self, expression: Any, trtp: ModuleType) -> None:
        self.expression, self._trtp = expression, trtp

    def __add__(self, other: Size) -> Size:
        return self._with(self.expression + _raw(other))

    def __sub__(self, other: Size) -> Size:
        return self._with(self.expression - _raw(other))

    def __mul__(self, other: Size) -> Size:
        return self._with(self.expression * _raw(other))

    __radd__ = __add__
    __rmul__ = __mul__

    def ceil_div(self, other: int) -> Size:
        return self._with(self._trtp.cdiv(self.expression, other))

    def at_most(self, other: int) -> Size:
        return self._with(self._trtp.min(self.expression, other))

    def _with(self, expression: Any) -> Size:
        return _Symbol(expression, self._trtp)


def _raw(size: Size) -> Any:
    return size.expression if isinstance(size, _Symbol) else size
