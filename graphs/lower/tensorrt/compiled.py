"""What a TensorRT build makes: engines of layer kinds, or of layers with their weights in them, and programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from dsv3export.engine.manifest import BackendRecord, Location, WeightEntry
from dsv3export.engine.pieces import read_array
from dsv3export.engine.program import MTP_PROGRAM, PHASES, PROGRAM, Phase
from dsv3export.graphs.backend import GraphFile
from dsv3export.graphs.lower.tensorrt.emit import Baked
from dsv3export.graphs.lower.tensorrt.engines import BuiltEngine, Target, build_kind
from dsv3export.graphs.lower.tensorrt.network import result_names
from dsv3export.graphs.lower.tensorrt.program import program_of
from dsv3export.graphs.lower.tensorrt.progress import Steps
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.trace import Part
from dsv3export.progress import Progress

_PROGRAMS: Mapping[Part, str] = {"trunk": PROGRAM, "mtp": MTP_PROGRAM}
# Name of a layer kind or layer -> phase -> its engine.
Built = Mapping[str, Mapping[Phase, BuiltEngine]]


@dataclass(frozen=True)
class Parts:
    """The lowered graphs of a model, and what the engines of each are built for.

    Attributes:
        record: Of the backend.
    """

    graphs: Mapping[Part, GraphWithWeights]
    targets: Mapping[Part, Target]
    record: BackendRecord

    def programs(self, built: Built) -> Iterable[tuple[str, GraphFile]]:
        """The files of the programs."""
        for part, graph in self.graphs.items():
            name, target = _PROGRAMS[part], self.targets[part]
            program = program_of(graph.model, target, built, self.record.compute, self.record.built_with)
            yield name, GraphFile(f"graph/{name}.json", program.to_json())


@dataclass(frozen=True)
class KindEngines:
    """Engines of the layer kinds, which take their weights as inputs."""

    parts: Parts
    engines: Built

    holds_weights = False

    @property
    def record(self) -> BackendRecord:
        return self.parts.record

    def files(self, entries: Sequence[WeightEntry], roots: Mapping[Location, Path]) -> Iterable[tuple[str, GraphFile]]:
        yield from self.parts.programs(self.engines)
        for name, phases in self.engines.items():
            for phase, engine in phases.items():
                yield _engine_file(name, phase, engine)


def build_kinds(parts: Parts, progress: Progress) -> KindEngines:
    """Build the kinds of all parts, each once."""
    wanted: dict[str, tuple[Part, ir.Function, Sequence[str]]] = {}
    for part, graph in parts.graphs.items():
        results = result_names(graph.model)
        for function in graph.model.functions.values():
            if function.name in results:
                wanted.setdefault(function.name, (part, function, results[function.name]))
    trt = parts.targets["trunk"].trt
    with Steps(trt, progress, len(wanted) * len(PHASES)) as steps:
        built = {
            name: dict(build_kind(parts.targets[part], function, results, steps))
            for name, (part, function, results) in wanted.items()
        }
    return KindEngines(parts, built)


@dataclass(frozen=True)
class BakedEngines:
    """Engines of layers that hold their weights; they are built when these have been made, one at a time."""

    parts: Parts
    progress: Progress

    holds_weights = True

    @property
    def record(self) -> BackendRecord:
        return self.parts.record

    def files(self, entries: Sequence[WeightEntry], roots: Mapping[Location, Path]) -> Iterable[tuple[str, GraphFile]]:
        by_name = {entry.name: entry for entry in entries}
        calls = {
            str(call.name): (part, call) for part, graph in self.parts.graphs.items() for call in graph.model.graph
        }
        built: dict[str, dict[Phase, BuiltEngine]] = {}
        with Steps(self.parts.targets["trunk"].trt, self.progress, len(calls) * len(PHASES)) as steps:
            for name, (part, call) in calls.items():
                model = self.parts.graphs[part].model
                function = model.functions[(call.domain, call.op_type, "")]
                actual = {str(f.name): str(v.name) for f, v in zip(function.inputs, call.inputs, strict=True) if v}
                weights = {
                    formal: read_array(roots[by_name[weight].location], by_name[weight])
                    for formal, weight in actual.items()
                    if weight in by_name
                }
                results = result_names(model)[call.op_type]
                built[name] = {}
                for phase, engine in build_kind(
                    self.parts.targets[part], function, results, steps, Baked(name, weights)
                ):
                    yield _engine_file(name, phase, engine)
                    # It is written; what is left to be told is what it takes and gives.
                    built[name][phase] = replace(engine, data=b"")
        yield from self.parts.programs(built)


def _engine_file(name: str, phase: Phase, engine: BuiltEngine) -> tuple[str, GraphFile]:
    return f"{name}.{phase}", GraphFile(f"graph/{name}.{phase}.engine", engine.data)
