"""Serialized engines of the layer kinds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from dsv3export.engine.program import PHASES, Kind, Limits, Phase
from dsv3export.errors import BackendError
from dsv3export.graphs.lower.tensorrt.emit import Baked, Emitter, Types
from dsv3export.graphs.lower.tensorrt.flavour import Flavour
from dsv3export.graphs.lower.tensorrt.log import make_logger
from dsv3export.graphs.lower.tensorrt.network import define
from dsv3export.graphs.lower.tensorrt.objects import IBuilder, IBuilderConfig, IHostMemory, INetwork, Module
from dsv3export.graphs.lower.tensorrt.profiles import add_profile
from dsv3export.graphs.lower.tensorrt.progress import Steps
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.timing import TimingCache
from dsv3export.runtime.tensorrt_module import without_collector


@dataclass(frozen=True)
class Target:
    """What engines are built for.

    Attributes:
        trt: TensorRT's module, or a recorder that stands for it.
        rows: How each op becomes layers.
        types: What is computed in.
        limits: What the profiles reach to.
        devices: Compute capabilities, of those that the flavour knows; empty for its default.
        timing: Measurements of kernels, for a flavour that makes them.
    """

    trt: Module
    flavour: Flavour
    rows: Mapping[Key, Row]
    types: Types
    limits: Limits
    devices: tuple[str, ...] = ()
    timing: TimingCache | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what it takes and gives.

    Attributes:
        kind: Without engine names yet.
        shown: Value -> its debug tensor, of an engine that shows some.
    """

    data: bytes
    kind: Kind
    shown: Mapping[str, str] = field(default_factory=dict)


def build_kind(
    target: Target, function: ir.Function, results: Sequence[str], steps: Steps, baked: Baked | None = None
) -> Iterator[tuple[Phase, BuiltEngine]]:
    """Build a prepared layer kind for both phases, one after the other; see `build_engine`."""
    for phase in PHASES:
        yield phase, build_engine(target, function, results, phase, steps, baked=baked)


@without_collector()
def build_engine(
    target: Target,
    function: ir.Function,
    results: Sequence[str],
    phase: Phase,
    steps: Steps | None = None,
    show: Collection[str] = (),
    baked: Baked | None = None,
) -> BuiltEngine:
    """Build one layer kind for one phase.

    Args:
        function: The prepared kind.
        results: Names of its results.
        steps: Is told how far the build is.
        show: Names of values that a debug listener shall be able to see.
        baked: A layer's name and weights, which the engine shall hold.

    Raises BackendError with what TensorRT says where it refuses the network.
    """
    trt = target.trt
    logger = make_logger(trt)
    builder = _builder(target, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    what = f"{target.flavour.name}: {baked.name if baked else function.name} for {phase}"
    try:
        emitter = define(trt, network, function, results, target.rows, target.flavour, target.types, phase, baked)
        shown = emitter.show(show)
    except (RuntimeError, ValueError):
        # The shape of what a refused layer gives cannot be read.
        if not logger.errors:
            raise
        raise _refusal(what, logger.errors) from None
    config = _config(target, builder)
    add_profile(builder, config, emitter.inputs, phase, target.limits)
    serialized = _serialized(target, builder, network, config, steps)
    if serialized is None:
        raise _refusal(what, logger.errors)
    return BuiltEngine(bytes(serialized), kind_of(emitter), shown)


def _serialized(
    target: Target, builder: IBuilder, network: INetwork, config: IBuilderConfig, steps: Steps | None
) -> IHostMemory:
    """What the builder makes of the network; None where it refuses it. Raises what stopped it meanwhile."""
    if steps is not None:
        steps.watch(config)
    serialized: IHostMemory = builder.build_serialized_network(network, config)
    if steps is not None:
        steps.built()
    if target.timing is not None:
        target.timing.take(config)
    return serialized


def _refusal(what: str, errors: Sequence[str]) -> BackendError:
    return BackendError(what, expected="a network that it can build", got="; ".join(errors[:2]) or "no reason")


def _builder(target: Target, logger: object) -> IBuilder:
    try:
        return target.trt.Builder(logger)
    except (TypeError, RuntimeError):
        # What pybind11 makes of a factory that gives nothing.
        raise BackendError(
            f"backend {target.flavour.name}", expected="a machine on which it can build",
            got="none: it needs the GPU that the engine is for, and a driver",
            fix="Build there, or use --backend tensorrt-rtx, which builds anywhere.",
        ) from None  # fmt: skip


def _config(target: Target, builder: IBuilder) -> IBuilderConfig:
    config, trt = builder.create_builder_config(), target.trt
    # Layer names, which carry provenance, are kept; float32 means float32.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT-RTX: an engine that takes memory of its own while it runs cannot be part of a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if target.flavour.plugins:
        # The cache's plugin updates it in place.
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if target.timing is not None:
        target.timing.give(config)
    if target.devices:
        config.num_compute_capabilities = len(target.devices)
        for place, name in enumerate(target.devices):
            config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), place)
    return config


def kind_of(emitter: Emitter) -> Kind:
    """What a defined network takes and gives."""
    return Kind({}, tuple(emitter.inputs), tuple(emitter.outputs), tuple(emitter.weights), dict(emitter.aliases))
