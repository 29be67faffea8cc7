"""TensorRT and TensorRT-RTX as backends of the build: two engines for each layer kind, and a program of calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import BackendRecord, Compute
from dsv3export.engine.program import Limits
from dsv3export.errors import InternalError, RequestError
from dsv3export.graphs.backend import BackendOptions, TensorRTOptions, router_dtype
from dsv3export.graphs.lower.tensorrt.choices import (
    aligned_capacity,
    cache_for,
    check_baked_schemes,
    check_constants,
    check_schemes,
    compute_for,
    draft_limits,
    limits_for,
)
from dsv3export.graphs.lower.tensorrt.compiled import BakedEngines, KindEngines, Parts, build_kinds
from dsv3export.graphs.lower.tensorrt.dtypes import FLOAT_TYPES
from dsv3export.graphs.lower.tensorrt.emit import Types
from dsv3export.graphs.lower.tensorrt.engines import Target
from dsv3export.graphs.lower.tensorrt.flavour import Flavour
from dsv3export.graphs.lower.tensorrt.prepare import prepare
from dsv3export.graphs.lower.tensorrt.rows import rows_for
from dsv3export.graphs.lower.tensorrt.timing import TimingCache
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.trace import Part
from dsv3export.progress import Progress
from dsv3export.recipe import Recipe
from dsv3export.runtime.tensorrt_module import load_tensorrt


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
        if self._asked.bake_weights:
            check_baked_schemes(self._flavour, recipe)
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
    ) -> KindEngines | BakedEngines:
        compute = self._compute(recipe)
        asked = limits_for(self._asked, config)
        limits = replace(asked, capacity=aligned_capacity(asked.capacity, config, recipe.cache))
        of_parts: Mapping[Part, Limits] = {"trunk": limits, "mtp": draft_limits(limits, config, recipe.cache)}
        targets = {part: self._target(compute, recipe, of_parts[part]) for part in graphs}
        opset = graphs["trunk"].model.graph.opset_imports[""]
        record = BackendRecord(self._flavour.name, str(self._trt.__version__), opset, (), compute)
        parts = Parts(graphs, targets, record)
        if self._asked.bake_weights:
            check_constants(graphs)
            return BakedEngines(parts, progress)
        return build_kinds(parts, progress)

    def _compute(self, recipe: Recipe) -> Compute:
        return compute_for(recipe, self._options.compute)

    def _target(self, compute: Compute, recipe: Recipe, limits: Limits) -> Target:
        step_tokens = limits.slots * (1 + limits.draft)
        types = Types(FLOAT_TYPES[compute], FLOAT_TYPES[recipe.cache], limits.capacity, step_tokens)
        timing = TimingCache.of_user(str(self._trt.__version__)) if self._flavour.measures else None
        return Target(self._trt, self._flavour, rows_for(self._flavour), types, limits, self._devices, timing)


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
