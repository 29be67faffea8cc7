"""ONNX Runtime as a backend of the build: ONNX files, whose weights are external data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx_ir as ir

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine import manifest
from dsv3export.engine.manifest import BackendRecord, Compute, Provider, WeightEntry
from dsv3export.engine.native_graphs import native_name
from dsv3export.engine.program import PROGRAM
from dsv3export.engine.segments import SegmentProgram
from dsv3export.engine.writer import BY_REFERENCE
from dsv3export.errors import BackendError, InternalError, RequestError
from dsv3export.graphs.backend import BackendOptions, GraphFile, router_dtype
from dsv3export.graphs.lower.onnxruntime.lowering import lower
from dsv3export.graphs.lower.onnxruntime.native import with_native
from dsv3export.graphs.lower.onnxruntime.providers import (
    Lowering,
    as_computed,
    check_experts,
    lowering_for,
    providers_with_kernels,
)
from dsv3export.graphs.lower.onnxruntime.serialize import Location, serialize
from dsv3export.graphs.passes.cache_format import narrow_cache
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.shard.segments import cut_segments
from dsv3export.graphs.spec import verify
from dsv3export.graphs.trace import Part
from dsv3export.progress import Progress
from dsv3export.recipe import Recipe

NAME = "onnxruntime"


class OnnxRuntimeBackend:
    """Builds for one of ONNX Runtime's providers. Raises RequestError for options of other backends."""

    takes_mtp = True
    takes_ranks = True

    def __init__(self, options: BackendOptions) -> None:
        if given := options.tensorrt.given():
            raise RequestError(
                given[0], expected="backend tensorrt-rtx or tensorrt", got=NAME,
                fix="Leave it out: ONNX Runtime's engines have no such limit.",
            )  # fmt: skip
        self._provider: Provider = options.provider
        self._asked = options.compute

    def adapted(self, recipe: Recipe) -> Recipe:
        computed = as_computed(self._lowering(recipe)[0], recipe)
        _check_activations(computed, self._provider)
        return computed

    def check(self, recipe: Recipe, config: ModelConfig) -> None:
        check_experts(self._lowering(recipe)[0], recipe, config)

    def lower(self, graph: GraphWithWeights, recipe: Recipe, checkpoint: Checkpoint) -> GraphWithWeights:
        narrowed = narrow_cache(graph, recipe.cache, checkpoint.config)
        verify(narrowed.model)
        lowering, compute = self._lowering(recipe)
        routers = router_dtype(checkpoint, recipe)
        if self._provider != "cpu":
            return lower(narrowed, lowering.rows(compute), routers)
        kept = narrowed.copy()
        return with_native(lower(narrowed, lowering.rows(compute), routers), kept, routers)

    def compile(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, config: ModelConfig, progress: Progress
    ) -> OnnxFiles:
        models: dict[str, ir.Model] = {part: graph.model for part, graph in graphs.items()}
        native: dict[str, ir.Model] = {part: graph.native for part, graph in graphs.items() if graph.native is not None}
        return OnnxFiles(models, self._record(graphs, recipe), native)

    def compile_rank(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, received: str | None, sent: str | None
    ) -> OnnxFiles:
        program, models = _cut({part: graph.model for part, graph in graphs.items()}, received, sent)
        programs: dict[str, SegmentProgram] = {PROGRAM: program}
        native: dict[str, ir.Model] = {}
        if self._provider == "cpu":  # the collectives are the same, what segments hand over may differ
            twins = {part: _native(graph) for part, graph in graphs.items()}
            programs[native_name(PROGRAM)], native = _cut(twins, received, sent)
        return OnnxFiles(models, self._record(graphs, recipe), native, programs)

    def _record(self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe) -> BackendRecord:
        compute = self._lowering(recipe)[1]
        opset = graphs["trunk"].model.graph.opset_imports[""]
        providers = providers_with_kernels(self._provider, recipe, compute)
        return BackendRecord(NAME, _installed_version(), opset, providers, compute)

    def _lowering(self, recipe: Recipe) -> tuple[Lowering, Compute]:
        return lowering_for(self._provider, self._asked, recipe)


@dataclass(frozen=True)
class OnnxFiles:
    """The graphs of an engine, or of a rank with the programs of its segments; they say where their weights lie.

    Attributes:
        native: By the same names, the graphs for the native CPU kernels; empty for other providers.
        programs: By name, of a rank: that of `models` and that of `native`.
    """

    models: Mapping[str, ir.Model]
    record: BackendRecord
    native: Mapping[str, ir.Model]
    programs: Mapping[str, SegmentProgram] = field(default_factory=dict)

    holds_weights = False

    def files(
        self, entries: Sequence[WeightEntry], roots: Mapping[manifest.Location, Path]
    ) -> Iterable[tuple[str, GraphFile]]:
        locations = _locations(entries)
        models = {**self.models, **{native_name(name): model for name, model in self.native.items()}}
        for name, model in models.items():
            yield name, GraphFile(f"graph/{name}.onnx", serialize(model, locations))
        for name, program in self.programs.items():
            yield name, GraphFile(f"graph/{name}.json", program.to_json())


def _cut(
    models: Mapping[Part, ir.Model], received: str | None, sent: str | None
) -> tuple[SegmentProgram, dict[str, ir.Model]]:
    """The segments of a rank's parts, and the order that they run in."""
    cuts = {"trunk": cut_segments(models["trunk"], "segment", received, sent)}
    if "mtp" in models:
        cuts["mtp"] = cut_segments(models["mtp"], "mtp-segment")
    segments = {name: model for cut in cuts.values() for name, model in cut.models.items()}
    return SegmentProgram({part: cut.part for part, cut in cuts.items()}), segments


def _native(graph: GraphWithWeights) -> ir.Model:
    if graph.native is None:
        raise InternalError("a graph for the CPU has none for the native kernels")
    return graph.native


def _check_activations(recipe: Recipe, provider: Provider) -> None:
    """Raises BackendError for a component whose activations cannot be rounded, or left, as the recipe wants."""
    for component, scheme in recipe.schemes():
        if provider == "cpu" and (component, scheme.format, scheme.activations) == ("routed_experts", "int8", "none"):
            raise BackendError(
                f"{recipe.source}: {component} as int8 with activations none on {NAME}",
                expected="activations int8: ONNX Runtime's QMoE rounds them at 8 bits whatever it is asked",
            )
        if provider != "cpu" and scheme.activations == "1x128":
            raise BackendError(
                f"{recipe.source}: {component} with activations 1x128 on {NAME}, provider {provider}",
                expected="activations none: the kernels there do not round; provider cpu and the executor do",
            )


def _locations(entries: Sequence[WeightEntry]) -> Mapping[str, Location]:
    """Where the graph says that its weights lie; what stays in the checkpoint is bound when the engine is loaded."""
    by_reference = BY_REFERENCE, 0
    return {
        entry.name: Location(*(entry.pieces[0][:2] if entry.location == "engine" else by_reference), entry.nbytes)
        for entry in entries
    }


def _installed_version() -> str:
    """The installed version, for the record; a build does not need ONNX Runtime itself."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    return "not installed"
