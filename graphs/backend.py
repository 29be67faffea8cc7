"""What a build asks of a backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import BackendRecord, Compute, Location, Provider, WeightEntry
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.trace import Part
from dsv3export.progress import Progress
from dsv3export.recipe import Recipe


@dataclass(frozen=True)
class TensorRTOptions:
    """What TensorRT wants to know beforehand; None = the default.

    Attributes:
        max_slots: Sequences of a step, 8.
        max_length: Tokens of a sequence, prompt and answer: 4096, or what the model has.
        prefill_chunk: Tokens of a slot in a step of prefill, 256.
        max_draft: Tokens of a slot in a step of decoding beside the one that is certain, 1.
        devices: Compute capabilities such as "sm89", where an engine can be built for devices that are not there.
        bake_weights: Whether each layer gets engines of its own that hold its weights.
    """

    max_slots: int | None = None
    max_length: int | None = None
    prefill_chunk: int | None = None
    max_draft: int | None = None
    devices: tuple[str, ...] = ()
    bake_weights: bool = False

    def given(self) -> list[str]:
        """Names of those that are not as they are by default."""
        default = TensorRTOptions()
        return [name for name, value in vars(self).items() if value != getattr(default, name)]


@dataclass(frozen=True)
class BackendOptions:
    """What only some backends take.

    Attributes:
        provider: ONNX Runtime's execution provider that the engine is made for.
        compute: What is computed in, where the backend leaves a choice; None = its default for the recipe.
        cache_given: Whether the recipe's cache format was asked for: a backend may have a default of its own.
        tensorrt: TensorRT's.
    """

    provider: Provider = "cpu"
    compute: Compute | None = None
    cache_given: bool = False
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)


@dataclass(frozen=True)
class GraphFile:
    """A file that the backend loads: its name in the engine, and its bytes."""

    name: str
    data: bytes


class Compiled(Protocol):
    """A lowered model, ready to be written as soon as it is known where its weights lie."""

    @property
    def record(self) -> BackendRecord: ...

    @property
    def holds_weights(self) -> bool:
        """Whether the files hold the weights, so that nothing else needs them."""
        ...

    def files(self, entries: Sequence[WeightEntry], roots: Mapping[Location, Path]) -> Iterable[tuple[str, GraphFile]]:
        """The files, each with the name that the manifest has for it. Raises BackendError.

        Args:
            entries: The weight table.
            roots: The folders that its entries lie in.
        """
        ...


class Backend(Protocol):
    """How engines are built for one backend, with the options of one build."""

    @property
    def takes_mtp(self) -> bool:
        """Whether engines may have the MTP layer."""
        ...

    @property
    def takes_ranks(self) -> bool:
        """Whether engines may be cut for several ranks."""
        ...

    def adapted(self, recipe: Recipe) -> Recipe:
        """The recipe as the engine will compute it. Raises UserError for what the backend cannot do."""
        ...

    def check(self, recipe: Recipe, config: ModelConfig) -> None:
        """Raises UserError where the backend cannot do it for a model of this shape."""
        ...

    def lower(self, graph: GraphWithWeights, recipe: Recipe, checkpoint: Checkpoint) -> GraphWithWeights:
        """Lower a quantised graph, which is used up; its weights are then those of the engine."""
        ...

    def compile(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, config: ModelConfig, progress: Progress
    ) -> Compiled:
        """Make of the lowered graphs what the backend loads, as far as that needs no weights. Raises BackendError."""
        ...

    def compile_rank(
        self, graphs: Mapping[Part, GraphWithWeights], recipe: Recipe, received: str | None, sent: str | None
    ) -> Compiled:
        """The same of one rank's graphs.

        Args:
            received: The input that comes from the previous pipeline stage.
            sent: The output that goes to the next one.
        """
        ...


def router_dtype(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """The dtype of the routers' weights: as stored, where the recipe leaves the experts' as they may be stored, too."""
    stored = {info.dtype for name, info in checkpoint.tensors.items() if name.endswith(".mlp.gate.weight")}
    as_stored = recipe.components["routed_experts"].format in ("fp8", "bf16", "f16")
    return stored.pop() if as_stored and len(stored) == 1 else "F32"
