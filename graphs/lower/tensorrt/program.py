"""The program of a prepared graph: its main graph's calls, with the tensors that the engines turned out to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from dsv3export.engine.manifest import Compute
from dsv3export.engine.program import PHASES, Call, Kind, Phase, Program
from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.emit import LENGTH
from dsv3export.graphs.lower.tensorrt.engines import BuiltEngine, Target
from dsv3export.graphs.values import is_weight


def program_of(
    model: ir.Model,
    target: Target,
    built: Mapping[str, Mapping[Phase, BuiltEngine]],
    compute: Compute,
    version: str,
) -> Program:
    """The program.

    Args:
        built: Kind, or layer that has engines of its own -> phase -> its engine; also those of other programs.
        version: TensorRT's.
    """
    names = {call: call.op_type if call.op_type in built else str(call.name) for call in model.graph}
    kinds = {name: _kind(name, phases) for name, phases in built.items() if name in names.values()}
    run_time = tuple(str(value.name) for value in model.graph.inputs if not is_weight(value))
    sizes = (LENGTH,) if any(_takes_length(kind) for kind in kinds.values()) else ()
    return Program(
        flavour=target.flavour.name,
        version=version,
        compute=compute,
        cache=target.types.cache,
        limits=target.limits,
        devices=target.devices,
        kinds=kinds,
        calls=tuple(_call(model, call, name, kinds[name]) for call, name in names.items()),
        inputs=(*run_time, *sizes),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
    )


def _kind(name: str, phases: Mapping[Phase, BuiltEngine]) -> Kind:
    """What is common to a kind's engines; the runtime binds both alike."""
    first, *others = (phases[phase].kind for phase in PHASES)
    for other in others:
        if (other.outputs, other.weights, other.aliases) != (first.outputs, first.weights, first.aliases) or set(
            other.inputs
        ) != set(first.inputs):
            raise InternalError(f"the engines of {name} have different tensors in different phases")
    return replace(first, engines={phase: f"{name}.{phase}" for phase in PHASES})


def _takes_length(kind: Kind) -> bool:
    return any(port.name == LENGTH for port in kind.inputs)


def _call(model: ir.Model, call: ir.Node, name: str, kind: Kind) -> Call:
    function = model.functions[(call.domain, call.op_type, "")]
    actual = {
        str(formal.name): str(value.name)
        for formal, value in zip(function.inputs, call.inputs, strict=True)
        if value is not None
    }
    if _takes_length(kind):
        actual[LENGTH] = LENGTH
    return Call(
        name,
        call.metadata_props["dsv3.path"],
        {port.name: actual[port.name] for port in kind.inputs},
        {port.name: str(value.name) for port, value in zip(kind.outputs, call.outputs, strict=True)},
        {port.name: actual[port.name] for port in kind.weights},
    )
