"""An ONNX Runtime engine's own graph, one stage at a time, with its inner values as outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from dsv3export.compare.stages import Values
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import EngineError
from dsv3export.graphs.capture.calls import Call, Flow, empty_caches
from dsv3export.graphs.executor import recipe_graph
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.values import like
from dsv3export.runtime.latent_cache import CacheLayout
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeGraph

_BIAS = "mlp.gate.e_score_correction_bias"
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
    """

    def __init__(self, files: EngineFiles, prompts: Sequence[Sequence[int]], threads: int | None = None) -> None:
        self.config = files.config
        self.label = f"{files.path} (ONNX Runtime, {files.manifest.recipe.precision})"
        self._files, self._threads = files, threads
        self._calls = {str(node.name): _call(node) for node in self._model().graph}
        self._flow: Flow[Array] = Flow(list(self._calls.values()), [_given(ids) for ids in prompts])
        self._layout = CacheLayout.of(files.manifest.recipe.cache, self.config)
        self._lengths = [len(ids) for ids in prompts]

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self._calls)

    @contextmanager
    def open(self, stage: str) -> Iterator[_OpenStage]:
        """See `StagedModel.open`."""
        call = self._calls[stage]
        data, shown = self._only(stage)
        graph = OnnxRuntimeGraph(self._files, data, self._threads)
        bias = next((name for name in graph.weight_names if name.endswith(_BIAS)), None)
        biases = None if bias is None else self._files.weight(bias)
        yield _OpenStage(graph, call, shown, self._flow, self._layout, self._lengths, biases)
        self._flow.forget(call)

    def _model(self) -> ir.Model:
        # Read anew for each stage: what is taken out of it and exposed in it is never put back.
        try:
            return ir.from_proto(onnx.load_from_string(self._files.graph()))
        except Exception as error:  # protobuf and onnx_ir raise whatever a strange file leads them to
            raise EngineError(
                f"engine {self._files.path}: graph", expected="an ONNX model", got=type(error).__name__
            ) from error

    @cached_property
    def _traced(self) -> ir.Model:
        """The graph before it was lowered, for the names and types of its values."""
        return recipe_graph(self.config, "trunk", self._files.manifest.recipe).model

    def _only(self, stage: str) -> tuple[bytes, dict[str, str]]:
        """A model of one call, and its shown values: provenance name -> output."""
        model = self._model()
        node = next(node for node in model.graph if node.name == stage)
        shown = self._expose(model, node)
        graph, weights = model.graph, set()
        graph.remove([other for other in graph if other is not node])
        graph.inputs.clear()
        for place, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                weights.add(str(value.name))
            elif value is not None:
                # A new value: what another node has computed cannot be an input.
                graph.inputs.append(like(value))
                node.replace_input_with(place, graph.inputs[-1])
        graph.outputs.clear()
        graph.outputs.extend(node.outputs)
        for name in graph.initializers.keys() - weights:
            del graph.initializers[name]
        data: bytes = ir.to_proto(model).SerializeToString()
        return data, shown

    def _expose(self, model: ir.Model, node: ir.Node) -> dict[str, str]:
        """Make the inner values of the call's function outputs of function and call."""
        function = model.functions[(KIND_DOMAIN, node.op_type, "")]
        known = self._named_values(str(node.name))
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
        return shown

    def _named_values(self, stage: str) -> dict[str, ir.DataType | None]:
        """What the traced kind of a stage computes."""
        call = next((node for node in self._traced.graph if node.name == stage), None)
        if call is None:
            return {}
        function = self._traced.functions[(KIND_DOMAIN, call.op_type, "")]
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
        layout: CacheLayout,
        lengths: Sequence[int],
        bias: Array | None,
    ) -> None:
        self._graph, self._call, self._shown, self._flow = graph, call, shown, flow
        self._layout, self._lengths = layout, lengths
        self.router_bias = bias
        self.output = call.path or {"embed": "embed_tokens", "head": "lm_head"}[call.stage]

    def run(self, prompt: int, hidden: NDArray[np.float32] | None = None) -> Values:
        inputs = self._flow.inputs(self._call, prompt, hidden)
        needed = self._flow.needed(self._call)
        names = list(dict.fromkeys([*needed, *self._shown.values()]))
        caches = empty_caches(self._layout, self._call, self._lengths[prompt])
        results = dict(zip(names, self._graph.run(names, inputs | caches), strict=True))
        if hidden is None:
            self._flow.keep(self._call, prompt, {name: results[name] for name in needed})
        return {name: results[output] for name, output in self._shown.items()}


def _given(ids: Sequence[int]) -> dict[str, Array]:
    return {
        "input_ids": np.array([ids], np.int64),
        "start": np.zeros(1, np.int64),
        "logit_rows": np.arange(len(ids)),
    }


def _call(node: ir.Node) -> Call:
    inputs = tuple(str(value.name) for value in node.inputs if value is not None and not value.is_initializer())
    outputs = tuple(str(value.name) for value in node.outputs)
    return Call(str(node.name), node.metadata_props["dsv3.path"], inputs, outputs)
