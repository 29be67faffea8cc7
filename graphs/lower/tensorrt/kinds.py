"""The layer kinds of an engine that is there: what each was built of, made again of what the engine says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from dsv3export.engine.program import Kind, Phase, Program
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import EngineError
from dsv3export.graphs.executor import quantised_graph
from dsv3export.graphs.lower.tensorrt.dtypes import FLOAT_TYPES
from dsv3export.graphs.lower.tensorrt.emit import Emitter, Types
from dsv3export.graphs.lower.tensorrt.engines import BuiltEngine, Target, build_engine, kind_of
from dsv3export.graphs.lower.tensorrt.flavour import FLAVOURS
from dsv3export.graphs.lower.tensorrt.log import make_logger
from dsv3export.graphs.lower.tensorrt.network import define, result_names
from dsv3export.graphs.lower.tensorrt.objects import INetwork, Module
from dsv3export.graphs.lower.tensorrt.prepare import prepare
from dsv3export.graphs.lower.tensorrt.rows import rows_for
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.trace import Part
from dsv3export.runtime.tensorrt.engines import flavour_of
from dsv3export.runtime.tensorrt_module import without_collector

# Run-time sizes that say how many tokens there are; a value without one of them is about shapes, not of the model.
TOKENS = ("S", "B*S", "R")
_SHOWN = (ir.DataType.FLOAT, ir.DataType.INT64)


@dataclass(frozen=True)
class LayerKind:
    """A layer kind and what it was built for.

    Attributes:
        results: Names of its results.
        where: The engine, for messages.
    """

    target: Target
    function: ir.Function
    results: Sequence[str]
    known: Kind
    where: str

    @property
    def values(self) -> dict[str, tuple[int | str, ...]]:
        """What it computes of a token, in order: name -> shape, of sizes and names of run-time sizes."""
        outputs = [value for node in self.function if node.op_type != "Constant" for value in node.outputs]
        shapes = {str(value.name): tuple(dims_of(value)) for value in outputs if value.dtype in _SHOWN}
        return {name: shape for name, shape in shapes.items() if any(size in TOKENS for size in shape)}

    @property
    def outputs(self) -> dict[str, str]:
        """The kind's output -> the value that it is."""
        values = [str(value.name) for value in self.function.outputs]
        return dict(zip((port.name for port in self.known.outputs), values, strict=True))

    @without_collector()
    def defined(self, phase: Phase) -> tuple[INetwork, Emitter]:
        """Its network, not built; both must be kept as long as it is used. Raises EngineError."""
        trt = self.target.trt
        builder = trt.Builder(make_logger(trt))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        emitter = define(
            trt, network, self.function, self.results, self.target.rows, self.target.flavour, self.target.types, phase
        )
        self._require_same(kind_of(emitter))
        return network, emitter

    def built_to_show(self, phase: Phase) -> BuiltEngine:
        """A new engine, all of whose values a debug listener can see. Raises BackendError or EngineError."""
        built = build_engine(self.target, self.function, self.results, phase, show=self.values.keys())
        self._require_same(built.kind)
        return built

    def _require_same(self, made: Kind) -> None:
        """The engine at hand may be of another version of this program, with other tensors."""
        if (made.outputs, made.weights, made.aliases) != (
            self.known.outputs, self.known.weights, self.known.aliases,
        ) or set(made.inputs) != set(self.known.inputs):  # fmt: skip
            raise EngineError(
                f"{self.where}: {self.function.name}", expected="the tensors that this version of dsv3export builds",
                got="others", fix=REBUILD,
            )  # fmt: skip


def layer_kinds(files: EngineFiles, program: Program, part: Part, trt: Module) -> Mapping[str, LayerKind]:
    """Those of a program of an engine, by name.

    Args:
        trt: The flavour's module, or a recorder that stands for it.

    Raises EngineError where the program has a kind that this version does not make of the engine's model.
    """
    if not any(kind.weights for kind in program.kinds.values()):
        raise EngineError(
            f"engine {files.path}: program", expected="layer kinds that take their weights as inputs",
            got="layers that hold them", fix="Rebuild the engine without --bake-weights.",
        )  # fmt: skip
    flavour, limits = FLAVOURS[flavour_of(program)], program.limits
    step_tokens = limits.slots * (1 + limits.draft)
    types = Types(FLOAT_TYPES[program.compute], program.cache, limits.capacity, step_tokens)
    target = Target(trt, flavour, rows_for(flavour), types, limits, program.devices)
    layers = files.manifest.layers if part == "trunk" else None
    stored = {port.name: port.dtype for kind in program.kinds.values() for port in kind.weights}
    embedding = stored.get("embed_tokens.weight", "F32")
    router = next((dtype for name, dtype in stored.items() if name.endswith("mlp.gate.weight")), "F32")
    graph = quantised_graph(files.config, part, files.manifest.recipe, embedding, layers)
    model = prepare(graph, target.rows, router).model
    results = result_names(model)
    functions = {function.name: function for function in model.functions.values()}
    if odd := sorted(program.kinds.keys() ^ results.keys()):
        expected = f"the layer kinds of its model ({', '.join(sorted(results))})"
        raise EngineError(f"engine {files.path}: program", expected=expected, got=f"{odd[0]!r} amiss", fix=REBUILD)
    return {
        name: LayerKind(target, functions[name], results[name], kind, f"engine {files.path}")
        for name, kind in program.kinds.items()
    }
