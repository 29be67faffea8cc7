"""An ONNX Runtime engine's own graph, one stage at a time, with its inner values as outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from dsv3export.compare.stages import Values
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError, EngineError
from dsv3export.graphs.capture.calls import FINAL_HIDDEN, ROUTER_BIAS, Call, Flow, empty_caches, given_inputs
from dsv3export.graphs.executor import recipe_graph
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.trace import PARTS, Part
from dsv3export.graphs.values import like
from dsv3export.runtime.kernel_choice import KernelChoice
from dsv3export.runtime.onnxruntime_device import open_device
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeGraph

_SHOWN = (ir.DataType.FLOAT, ir.DataType.INT64)
Array = NDArray[Any]


class EngineStages:
    """A `StagedModel` of an engine.

    Each stage becomes a session of its own: the one call of the engine's main graph, its weights bound as ever, and
    every value that the traced kind names too as an output. ONNX Runtime does not fuse across a value that it hands
    out, so that a stage may be slower than in the engine's own session and differ from it in the last bits.

    Args:
        files: The engine.
        prompts: Token ids of each, run as a whole.
        threads: As for `OnnxRuntimeSession`.
        cpu_kernels: Which of the engine's graphs is looked into, and what computes it.

    Raises BackendError for an engine of another backend: its layers show nothing of what is in them.
    """

    def __init__(
        self,
        files: EngineFiles,
        prompts: Sequence[Sequence[int]],
        threads: int | None = None,
        cpu_kernels: KernelChoice = "auto",
    ) -> None:
        if files.manifest.backend.name != "onnxruntime":
            raise BackendError(
                f"engine {files.path}: layer by layer", expected="an engine for onnxruntime",
                got=files.manifest.backend.name,
                fix="Compare its outputs with eval --against, and its ops with doctor --conformance.",
            )  # fmt: skip
        self.config = files.config
        self._device = open_device(files, "cpu", cpu_kernels)
        kernels = ", native kernels" if self._device.cpu_kernels == "native" else ""
        self.label = f"{files.path} (ONNX Runtime, {files.manifest.recipe.precision}{kernels})"
        self._files, self._threads = files, threads
        self._calls = {str(node.name): Call.of_node(node, _is_weight) for node in self._model("trunk").graph}
        if "mtp" in files.manifest.graphs:
            call = Call.of_mtp(self._model("mtp").graph, _is_weight)
            self._calls[call.stage] = call
        self._flow: Flow[Array] = Flow(list(self._calls.values()), [given_inputs(ids) for ids in prompts])
        self._lengths = [len(ids) for ids in prompts]

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self._calls)

    @contextmanager
    def open(self, stage: str) -> Iterator[_OpenStage]:
        """See `StagedModel.open`."""
        call = self._calls[stage]
        data, shown = self._only(call)
        graph = OnnxRuntimeGraph(self._files, data, self._threads, self._device)
        bias = next((name for name in graph.weight_names if name.endswith(ROUTER_BIAS)), None)
        biases = None if bias is None else self._files.weight(bias)
        format = self._files.manifest.recipe.cache
        caches = [empty_caches(format, self.config, call, length) for length in self._lengths]
        yield _OpenStage(graph, call, shown, self._flow, caches, biases)
        self._flow.forget(call)
        self._files.release_pages()

    def _model(self, part: Part) -> ir.Model:
        # Read anew for each stage: what is taken out of it and exposed in it is never put back.
        try:
            return ir.from_proto(onnx.load_from_string(self._files.graph(self._device.graph_name(part))))
        except Exception as error:  # protobuf and onnx_ir raise whatever a strange file leads them to
            raise EngineError(
                f"engine {self._files.path}: graph", expected="an ONNX model", got=type(error).__name__
            ) from error

    @cached_property
    def _traced(self) -> dict[Part, ir.Model]:
        """The graphs before they were lowered, for the names and types of their values."""
        recipe, parts = self._files.manifest.recipe, tuple(self._files.manifest.graphs)
        return {part: recipe_graph(self.config, part, recipe).model for part in PARTS if part in parts}

    def _only(self, call: Call) -> tuple[bytes, dict[str, str]]:
        """A model of one stage, and its shown values: provenance name -> output."""
        part: Part = "mtp" if call.drafts else "trunk"
        model = self._model(part)
        node = next(node for node in model.graph if node.name == call.stage)
        shown = self._expose(model, node, part)
        if part == "trunk":
            _isolate(model.graph, node)
        model.graph.outputs.clear()
        model.graph.outputs.extend(node.outputs)
        data: bytes = ir.to_proto(model).SerializeToString()
        return data, shown

    def _expose(self, model: ir.Model, node: ir.Node, part: Part) -> dict[str, str]:
        """Make the inner values of the call's function outputs of function and call."""
        function = model.functions[(KIND_DOMAIN, node.op_type, "")]
        known = self._named_values(str(node.name), part)
        path = node.metadata_props["dsv3.path"]
        prefix = f"{path}." if path else ""
        shown = {path: str(node.outputs[0].name)} if path else {}
        for value in [value for inner in function for value in inner.outputs]:
            name = str(value.name)
            dtype = known.get(name)
            if dtype is None or dtype not in _SHOWN:
                continue
            if value in function.outputs:
                shown[f"{prefix}{name}"] = str(node.outputs[function.outputs.index(value)].name)
                continue
            function.outputs.append(value)
            node.resize_outputs(len(node.outputs) + 1)
            output = node.outputs[-1]
            output.name = shown[f"{prefix}{name}"] = f"shown.{prefix}{name}"
            output.dtype = dtype
        if any(value.name == FINAL_HIDDEN for value in node.outputs):
            shown[FINAL_HIDDEN] = FINAL_HIDDEN
        return shown

    def _named_values(self, stage: str, part: Part) -> dict[str, ir.DataType | None]:
        """What the traced kind of a stage computes."""
        call = next((node for node in self._traced[part].graph if node.name == stage), None)
        if call is None:
            return {}
        function = self._traced[part].functions[(KIND_DOMAIN, call.op_type, "")]
        return {str(value.name): value.dtype for inner in function for value in inner.outputs
                if inner.op_type != "Constant"}  # fmt: skip


class _OpenStage:
    """A `Stage`."""

    def __init__(
        self,
        graph: OnnxRuntimeGraph,
        call: Call,
        shown: dict[str, str],
        flow: Flow[Array],
        caches: Sequence[Mapping[str, Array]],
        bias: Array | None,
    ) -> None:
        self._graph, self._call, self._shown, self._flow = graph, call, shown, flow
        self._caches = caches
        self.router_bias = bias
        self.output, self.handed_on = call.output, call.handed_on

    def run(self, prompt: int, hidden: NDArray[np.float32] | None = None) -> Values:
        inputs = self._flow.inputs(self._call, prompt, hidden)
        needed = self._flow.needed(self._call)
        names = list(dict.fromkeys([*needed, *self._shown.values()]))
        results = dict(zip(names, self._graph.run(names, {**inputs, **self._caches[prompt]}), strict=True))
        if hidden is None:
            self._flow.keep(self._call, prompt, {name: results[name] for name in needed})
        return {name: results[output] for name, output in self._shown.items()}


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer()


def _isolate(graph: ir.Graph, node: ir.Node) -> None:
    """Take all but one call out of a main graph; what it needs of the others becomes an input."""
    weights = set()
    graph.remove([other for other in graph if other is not node])
    graph.inputs.clear()
    for place, value in enumerate(node.inputs):
        if value is not None and value.is_initializer():
            weights.add(str(value.name))
        elif value is not None:
            # A new value: what another node has computed cannot be an input.
            graph.inputs.append(like(value))
            node.replace_input_with(place, graph.inputs[-1])
    for name in graph.initializers.keys() - weights:
        del graph.initializers[name]
