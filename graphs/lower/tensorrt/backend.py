"""TensorRT and TensorRT-RTX as backends of the build: two engines for each layer kind, and a program of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import BackendRecord, Compute, WeightEntry
from dsv3export.engine.program import MTP_PROGRAM, PHASES, PROGRAM, Limits, Phase, Program
from dsv3export.errors import InternalError, RequestError
from dsv3export.graphs.backend import BackendOptions, GraphFile, TensorRTOptions, router_dtype
from dsv3export.graphs.lower.tensorrt.choices import (
    aligned_capacity,
    cache_for,
    check_schemes,
    compute_for,
    draft_limits,
    limits_for,
)
from dsv3export.graphs.lower.tensorrt.dtypes import FLOAT_TYPES
from dsv3export.graphs.lower.tensorrt.emit import Types
from dsv3export.graphs.lower.tensorrt.engines import BuiltEngine, Target, build_kind
from dsv3export.graphs.lower.tensorrt.flavour import Flavour
from dsv3export.graphs.lower.tensorrt.network import result_names
from dsv3export.graphs.lower.tensorrt.prepare import prepare
from dsv3export.graphs.lower.tensorrt.program import program_of
from dsv3export.graphs.lower.tensorrt.progress import Steps
from dsv3export.graphs.lower.tensorrt.rows import rows_for
from dsv3export.graphs.lower.tensorrt.timing import TimingCache
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.trace import Part
from dsv3export.progress import Progress
from dsv3export.recipe import Recipe
from dsv3export.runtime.tensorrt_module import load_tensorrt

_PROGRAMS: Mapping[Part, str] = {"trunk": PROGRAM, "mtp": MTP_PROGRAM}


class TensorRTBackend:
    """Builds for one flavour.

    Raises:
        BackendError: The flavour's package is missing.
        RequestError: An option of another backend, or a device that it cannot build for.
    """

    takes_mtp = True
    takes_ranks = False

    def __init__(self, flavour: Flavour, options: BackendOptions) -> None:
        if options.provider != "cpu":
            raise RequestError(
                "provider", expected="backend onnxruntime", got=flavour.name, fix="Leave --provider out."
            )
        self._flavour = flavour
        self._options = options
        self._asked: TensorRTOptions = options.tensorrt
        self._devices = _checked_devices(flavour, self._asked.devices)
        self._trt = load_tensorrt(flavour.name)

    def adapted(self, recipe: Recipe) -> Recipe:
        check_schemes(self._flavour, recipe)
        compute = self._compute(recipe)
        cache = cache_for(self._flavour, recipe, compute, self._options.cache_given)
        return replace(recipe.unrounded(), cache=cache)

    def check(self, recipe: Recipe, config: ModelConfig) -> None:
        limits_for(self._asked, config)

    def lower(self, graph: GraphWithWeights, recipe: Recipe, checkpoint: Checkpoint) -> GraphWithWeights:
        return prepare(graph, rows_for(self._flavour), router_dtype(checkpoint, recipe))

    def compile_rank(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, received: str | None, sent: str | None
    ) -> KindEngines:
        raise InternalError("TensorRT's engines are not cut for several ranks")

    def compile(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, config: ModelConfig, progress: Progress
    ) -> KindEngines:
        compute = self._compute(recipe)
        asked = limits_for(self._asked, config)
        limits = replace(asked, capacity=aligned_capacity(asked.capacity, config, recipe.cache))
        of_parts: Mapping[Part, Limits] = {"trunk": limits, "mtp": draft_limits(limits, config, recipe.cache)}
        targets = {part: self._target(compute, recipe, of_parts[part]) for part in graphs}
        wanted = _kinds(graphs)
        built = {}
        with Steps(self._trt, progress, len(wanted) * len(PHASES)) as steps:
            for name, (part, function, results) in wanted.items():
                built[name] = build_kind(targets[part], function, results, steps)
        version = str(self._trt.__version__)
        opset = graphs["trunk"].model.graph.opset_imports[""]
        record = BackendRecord(self._flavour.name, version, opset, (), compute)
        programs = {
            _PROGRAMS[part]: program_of(graph.model, targets[part], built, compute, version)
            for part, graph in graphs.items()
        }
        return KindEngines(record, programs, built)

    def _compute(self, recipe: Recipe) -> Compute:
        return compute_for(recipe, self._options.compute)

    def _target(self, compute: Compute, recipe: Recipe, limits: Limits) -> Target:
        step_tokens = limits.slots * (1 + limits.draft)
        types = Types(FLOAT_TYPES[compute], FLOAT_TYPES[recipe.cache], limits.capacity, step_tokens)
        timing = TimingCache.of_user(str(self._trt.__version__)) if self._flavour.measures else None
        return Target(self._trt, self._flavour, rows_for(self._flavour), types, limits, self._devices, timing)


@dataclass(frozen=True)
class KindEngines:
    """The engines of all kinds, and the programs that call them."""

    record: BackendRecord
    programs: Mapping[str, Program]
    engines: Mapping[str, Mapping[Phase, BuiltEngine]]

    def files(self, entries: Sequence[WeightEntry]) -> Mapping[str, GraphFile]:
        files = {name: GraphFile(f"graph/{name}.json", each.to_json()) for name, each in self.programs.items()}
        for program in self.programs.values():
            for name, kind in program.kinds.items():
                for phase, engine in kind.engines.items():
                    files[engine] = GraphFile(f"graph/{engine}.engine", self.engines[name][phase].data)
        return files


def _kinds(graphs: Mapping[Part, GraphWithWeights]) -> Mapping[str, tuple[Part, ir.Function, Sequence[str]]]:
    """Layer kind -> the part of the model that it is first called by, its function, and names of its results."""
    kinds: dict[str, tuple[Part, ir.Function, Sequence[str]]] = {}
    for part, graph in graphs.items():
        results = result_names(graph.model)
        for function in graph.model.functions.values():
            if function.name in results:
                kinds.setdefault(function.name, (part, function, results[function.name]))
    return kinds


def _checked_devices(flavour: Flavour, devices: tuple[str, ...]) -> tuple[str, ...]:
    known = flavour.compute_capabilities
    for device in devices:
        if device not in known:
            raise RequestError(
                f"device {device} of backend {flavour.name}",
                expected=f"one of {', '.join(known)}" if known else "none: the engine is for the device that builds it",
                fix="Leave --device out, or choose another.",
            )
    return tuple(dict.fromkeys(devices))
