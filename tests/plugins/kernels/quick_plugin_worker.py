"""Drives each plugin through the real ``tensorrt.plugin`` as a build does, in a process that has stub libraries.

Reads cases as JSON from stdin: a plugin, its inputs' types with some sizes named, attributes, and for the names the
sizes of some runs. Answers in JSON what TensorRT would have been told. The shapes' expressions are TensorRT's own
classes on nodes of ours, since its builder of expressions needs its libraries.
"""

from __future__ import annotations

import json
import sys
from math import prod
from types import SimpleNamespace
from typing import Any

from dsv3export.plugins.kernels import quick_plugin
from dsv3export.plugins.kernels.catalogue import PLUGINS
from dsv3export.plugins.kernels.quick_plugin import DTYPES, plugin_module, register
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.support.emulated.driver import EmulatedDriver

trt: Any = load_tensorrt("tensorrt")
trtp: Any = plugin_module(trt)
TARGET = 90
TENSORRT_NAMES = {name: tensorrt for tensorrt, name in DTYPES.items()}
OPERATIONS = {
    trt.DimensionOperation.SUM: lambda a, b: a + b,
    trt.DimensionOperation.SUB: lambda a, b: a - b,
    trt.DimensionOperation.PROD: lambda a, b: a * b,
    trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
    trt.DimensionOperation.MIN: min,
    trt.DimensionOperation.MAX: max,
}


class Node(trt.IDimensionExpr):  # type: ignore[misc]
    """An expression over sizes with names; `value` says what it is for some sizes."""

    value: Any

    def is_constant(self) -> bool:
        return isinstance(self.value, int)

    def get_constant_value(self) -> int:
        assert isinstance(self.value, int)
        return self.value


def node(value: Any) -> Node:
    # TensorRT's class has no constructor for Python; its own are made by the library.
    made = Node.__new__(Node)
    made.value = value
    return made


def evaluate(expression: Any, sizes: dict[str, int]) -> int:
    value = expression.value if isinstance(expression, Node) else expression._expr.value
    return value if isinstance(value, int) else value(sizes)


class Builder:
    """Stands for TensorRT's IExprBuilder."""

    def constant(self, value: int) -> Node:
        assert type(value) is int
        return node(value)

    def operation(self, kind: Any, first: Node, second: Node) -> Node:
        operate = OPERATIONS[kind]
        if first.is_constant() and second.is_constant():
            return node(operate(first.value, second.value))
        return node(lambda sizes: operate(evaluate(first, sizes), evaluate(second, sizes)))


def dynamic(kind: Any, shape: list[Node], opt: dict[str, int]) -> Any:
    """What a builder says of a tensor: its sizes, -1 where they vary, and the ones to time."""
    made = trt.DynamicPluginTensorDesc()
    made.desc.type = kind
    made.desc.format = trt.TensorFormat.LINEAR
    made.desc.dims = trt.Dims([size.value if size.is_constant() else -1 for size in shape])
    made.opt = trt.Dims([evaluate(size, opt) for size in shape])
    return made


def drive(case: dict[str, Any]) -> dict[str, Any]:
    """One plugin from its description to its kernel."""
    definition = getattr(trtp.op.dsv3, case["plugin"])
    instance = trtp._plugin_class._TemplateAOTPlugin(case["plugin"], "dsv3", definition.num_outputs)
    instance.init(
        definition.register_func,
        case["attributes"],
        definition.aot_impl_attr_names,
        definition.aot_impl_func,
        definition.autotune_attr_names,
        definition.autotune_func,
    )
    types = [getattr(trt.DataType, TENSORRT_NAMES[dtype]) for dtype, _ in case["inputs"]]
    out_types = instance.get_output_data_types(types, [len(shape) for _, shape in case["inputs"]])
    shapes = [
        [node(size if isinstance(size, int) else (lambda sizes, name=size: sizes[name])) for size in shape]
        for _, shape in case["inputs"]
    ]
    builder, first = Builder(), case["runs"][0]
    out_shapes = instance.get_output_shapes(shapes, [], builder)
    inputs = [dynamic(kind, shape, first) for kind, shape in zip(types, shapes, strict=True)]
    outputs = [dynamic(kind, shape, first) for kind, shape in zip(out_types, out_shapes, strict=True)]
    in_out = [*inputs, *outputs]
    combinations = instance.get_supported_format_combinations(in_out, len(inputs))
    instance.configure_plugin(inputs, outputs)
    tactics = sorted(instance.get_valid_tactics())
    return {
        "dtypes": [DTYPES[kind.name] for kind in out_types],
        "shapes": [[[evaluate(size, sizes) for size in shape] for shape in out_shapes] for sizes in case["runs"]],
        "aliases": [instance.get_aliased_input(place) for place in range(len(out_types))],
        "combination": [DTYPES[kind.type.name] for kind in combinations],
        "tactics": [launched(instance, tactic, in_out, len(inputs), builder, case) for tactic in tactics],
        "from_python": [launched_by_python(definition, case, tactics[0], sizes) for sizes in case["runs"]],
    }


def launched_by_python(definition: Any, case: dict[str, Any], tactic: int, sizes: dict[str, int]) -> Any:
    """What the variant for debugging launches when TensorRT runs an engine, at sizes that are known."""
    instance = trtp._plugin_class._TemplateJITPlugin(case["plugin"], "dsv3", definition.num_outputs)
    instance.init(
        definition.register_func,
        case["attributes"],
        definition.impl_attr_names,
        definition.impl_func,
        definition.autotune_attr_names,
        definition.autotune_func,
        definition.expects_tactic,
    )
    shapes = [[sizes.get(size, size) for size in shape] for _, shape in case["inputs"]]
    types = [getattr(trt.DataType, TENSORRT_NAMES[dtype]) for dtype, _ in case["inputs"]]
    out_types = instance.get_output_data_types(types, [len(shape) for shape in shapes])
    sizes_out = instance.get_output_shapes([[node(size) for size in shape] for shape in shapes], [], Builder())
    out_shapes = [[size.value for size in shape] for shape in sizes_out]
    instance.set_tactic(tactic)
    inputs = list(range(1, 1 + len(shapes)))
    outputs = list(range(100, 100 + len(out_shapes)))
    RECORDING.launches.clear()
    instance.enqueue(
        [concrete(*pair) for pair in zip(types, shapes, strict=True)],
        [concrete(*pair) for pair in zip(out_types, out_shapes, strict=True)],
        inputs,
        outputs,
        [contiguous(shape) for shape in shapes],
        [contiguous(shape) for shape in out_shapes],
        STREAM,
    )
    (launch,) = RECORDING.launches
    return {"inputs": inputs, "outputs": outputs, **launch}


def concrete(kind: Any, shape: list[int]) -> Any:
    made = trt.PluginTensorDesc()
    made.type, made.format, made.dims = kind, trt.TensorFormat.LINEAR, trt.Dims(shape)
    return made


def contiguous(shape: list[int]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


STREAM = 7


class RecordingDriver(EmulatedDriver):
    """Notes what is launched, and does not do it."""

    def __init__(self) -> None:
        super().__init__(memory=1 << 20, compute_capability=(TARGET // 10, TARGET % 10))
        self.launches: list[dict[str, Any]] = []

    def cuModuleLoadData(self, image: bytes) -> bytes:  # noqa: N802
        return image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> dict[str, str]:  # noqa: N802
        return {"name": name.decode(), "ptx": module.rstrip(b"\0").decode()}

    def cuFuncSetAttribute(self, function: Any, kind: Any, value: int) -> None:  # noqa: N802
        raise AssertionError("more shared memory than TensorRT allows")

    def cuLaunchKernel(self, function: dict[str, str], *arguments: Any) -> None:  # noqa: N802
        *sizes, stream, (values, _), _ = arguments
        assert stream == STREAM
        self.launches.append({**function, "sizes": sizes, "values": list(values)})


def launched(instance: Any, tactic: int, in_out: list[Any], count: int, builder: Any, case: dict[str, Any]) -> Any:
    """What an engine keeps of a tactic: the kernel, and launch parameters and integers for each run."""
    instance.set_tactic(tactic)
    parameters, extra = SimpleNamespace(), Extra()
    instance.get_launch_params(None, in_out, count, parameters, extra, builder)
    name, ptx = instance.get_kernel([item.desc for item in in_out[:count]], [item.desc for item in in_out[count:]])
    names = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
    return {
        "tactic": tactic,
        "name": name,
        "ptx": ptx.decode(),
        "launches": [[evaluate(getattr(parameters, each), sizes) for each in names] for sizes in case["runs"]],
        "integers": [[evaluate(extra[place], sizes) for place in range(extra.nbSymExprs)] for sizes in case["runs"]],
    }


class Extra(dict[int, Any]):
    """Stands for TensorRT's ISymExprs."""

    nbSymExprs = 0  # noqa: N815 - TensorRT's name


RECORDING = RecordingDriver()


def main() -> None:
    # What crosses into C++ stays in Python: lists for shapes, and the expression for an argument.
    trtp._plugin_class.trt = SimpleNamespace(**{**vars(trt), "DimsExprs": lambda count: [None] * count})
    trtp._tensor.SymExprImpl = lambda argument: argument._expr
    device = Device(driver=Driver(RECORDING))
    quick_plugin.Device = lambda: device  # type: ignore[assignment, misc]  # a function for the class
    for plugin in PLUGINS.values():
        register(trt, plugin, lambda: TARGET)
    json.dump([drive(case) for case in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
