"""ONNX Runtime as a backend of the build: ONNX files, whose weights are external data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx_ir as ir

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine import manifest
from dsv3export.engine.manifest import BackendRecord, Compute, Provider, WeightEntry
from dsv3export.engine.program import PROGRAM
from dsv3export.engine.segments import SegmentProgram
from dsv3export.engine.writer import BY_REFERENCE
from dsv3export.errors import BackendError, RequestError
from dsv3export.graphs.backend import BackendOptions, GraphFile, router_dtype
from dsv3export.graphs.lower.onnxruntime.lowering import lower
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
        return lower(narrowed, lowering.rows(compute), router_dtype(checkpoint, recipe))

    def compile(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, config: ModelConfig, progress: Progress
    ) -> OnnxFiles:
        return OnnxFiles({part: graph.model for part, graph in graphs.items()}, self._record(graphs, recipe))

    def compile_rank(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, received: str | None, sent: str | None
    ) -> OnnxFiles:
        cuts = {"trunk": cut_segments(graphs["trunk"].model, "segment", received, sent)}
        if "mtp" in graphs:
            cuts["mtp"] = cut_segments(graphs["mtp"].model, "mtp-segment")
        models = {name: model for cut in cuts.values() for name, model in cut.models.items()}
        program = SegmentProgram({part: cut.part for part, cut in cuts.items()})
        return OnnxFiles(models, self._record(graphs, recipe), program)

    def _record(self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe) -> BackendRecord:
        compute = self._lowering(recipe)[1]
        opset = graphs["trunk"].model.graph.opset_imports[""]
        providers = providers_with_kernels(self._provider, recipe, compute)
        return BackendRecord(NAME, _installed_version(), opset, providers, compute)

    def _lowering(self, recipe: Recipe) -> tuple[Lowering, Compute]:
        return lowering_for(self._provider, self._asked, recipe)


@dataclass(frozen=True)
class OnnxFiles:
    """The graphs of an engine, or of a rank with the program of its segments; they say where their weights lie."""

    models: Mapping[str, ir.Model]
    record: BackendRecord
    program: SegmentProgram | None = None

    holds_weights = False

    def files(
        self, entries: Sequence[WeightEntry], roots: Mapping[manifest.Location, Path]
    ) -> Iterable[tuple[str, GraphFile]]:
        locations = _locations(entries)
        for name, model in self.models.items():
            yield name, GraphFile(f"graph/{name}.onnx", serialize(model, locations))
        if self.program is not None:
            yield PROGRAM, GraphFile("graph/program.json", self.program.to_json())


def _check_activations(recipe: Recipe, provider: Provider) -> None:
    """Raises BackendError for a component whose activations cannot be rounded, or left, as the recipe wants."""
    for component, scheme in recipe.schemes():
        if provider == "cpu" and (component, scheme.format, scheme.activations) == ("routed_experts", "int8", "none"):
            raise BackendError(
                f"{recipe.source}: {component} as int8 with activations none on {NAME}",
                expected="activations int8: ONNX Runtime's QMoE rounds them at 8 bits whatever it is asked",
            )
        if scheme.activations == "1x128":
            raise BackendError(
                f"{recipe.source}: {component} with activations 1x128 on {NAME}",
                expected="activations none, which this version builds; the executor rounds activations",
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
