"""The main graph: calls of the layer kinds, with the weights as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import onnx_ir as ir

from dsv3export.config import ModelConfig
from dsv3export.graphs.opset import IR_VERSION, KIND_DOMAIN, OPSET_IMPORTS
from dsv3export.graphs.trace.export import export_kind
from dsv3export.graphs.trace.kinds import layer_kinds
from dsv3export.graphs.values import like, own_copy

Part = Literal["trunk", "mtp"]
PARTS: tuple[Part, ...] = get_args(Part)

# Where the weights of the two outer kinds live in a checkpoint; a layer's live below model.layers.{i}.
_OUTER_NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "rotary.inverse_frequencies": "rotary.inverse_frequencies",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def graph_for(config: ModelConfig, part: Part = "trunk", layers: Sequence[int] | None = None) -> ir.Model:
    """Trace the model, or its (first) multi-token-prediction layer.

    Trunk: inputs ``input_ids`` [B, S], ``start`` [B], ``logit_rows`` [R], ``latent_cache.{i}`` [B, T, W], then the
    weights under their checkpoint names (``model.layers.3.mlp.experts.gate_proj`` is a bank of E tensors); outputs
    ``logits`` [R, V], ``final_hidden`` [B, S, D] and ``latent_cache.{i}.updated``. With `layers`, only those decoder
    layers stand between embedding and head, under their own names; cache i is that of the i-th of them.

    MTP: ``final_hidden`` of tokens i joins the inputs, ``input_ids`` are tokens i+1; outputs ``logits``,
    ``draft_hidden`` [B, S, D] (what ``final_hidden`` is to the trunk) and the cache.

    The model is the caller's to change. A process traces a kind once for a config; later graphs have copies.
    """
    builder = _Builder(config)
    chosen = range(config.num_hidden_layers) if layers is None else layers
    graph = builder.trunk(chosen) if part == "trunk" else builder.mtp()
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="dsv3export", functions=builder.functions())


@lru_cache(maxsize=16)
def _traced_kind(config: ModelConfig, kind: str) -> ir.Function:
    return export_kind(layer_kinds(config)[kind])


class _Builder:
    """Adds calls to a main graph; traces a kind when it is first called."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._kinds = layer_kinds(config)
        self._functions: dict[str, ir.Function] = {}
        self._inputs: dict[str, ir.Value] = {}
        self._weights: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []

    def functions(self) -> list[ir.Function]:
        return list(self._functions.values())

    def trunk(self, layers: Sequence[int]) -> ir.Graph:
        hidden, cos, sin = self._call("embed", "", self._runtime_inputs("embed"))
        start = self._inputs["start"]
        caches = []
        for i, layer in enumerate(layers):
            kind = self._config.layer_kind(layer)
            cache = self._input(kind, "cache", f"latent_cache.{i}")
            hidden, updated = self._call(kind, f"layers.{layer}", [hidden, start, cos, sin, cache])
            caches.append(_renamed(updated, f"latent_cache.{i}.updated"))
        rows = self._input("head", "logit_rows")
        logits, final_hidden = self._call("head", "", [hidden, rows])
        outputs = [_renamed(logits, "logits"), _renamed(final_hidden, "final_hidden"), *caches]
        return self._graph("trunk", outputs)

    def mtp(self) -> ir.Graph:
        layer = self._config.num_hidden_layers
        embedded, cos, sin = self._call("embed", "", self._runtime_inputs("embed"))
        final_hidden = self._input("mtp_layer", "final_hidden")
        cache = self._input("mtp_layer", "cache", f"latent_cache.{layer}")
        rows = self._input("mtp_layer", "logit_rows")
        arguments = [embedded, final_hidden, self._inputs["start"], cos, sin, cache, rows]
        logits, draft_hidden, updated = self._call("mtp_layer", f"layers.{layer}", arguments)
        results = {"logits": logits, "draft_hidden": draft_hidden, f"latent_cache.{layer}.updated": updated}
        outputs = [_renamed(value, name) for name, value in results.items()]
        return self._graph("mtp", outputs)

    def _graph(self, name: str, outputs: Sequence[ir.Value]) -> ir.Graph:
        inputs = [*self._inputs.values(), *self._weights.values()]
        return ir.Graph(inputs, outputs, nodes=self._nodes, opset_imports=dict(OPSET_IMPORTS), name=name)

    def _function(self, kind: str) -> ir.Function:
        if kind not in self._functions:
            self._functions[kind] = own_copy(_traced_kind(self._config, kind))
        return self._functions[kind]

    def _runtime_inputs(self, kind: str) -> list[ir.Value]:
        return [self._input(kind, argument.name) for argument in self._kinds[kind].arguments]

    def _input(self, kind: str, argument: str, name: str | None = None) -> ir.Value:
        """Declare a run-time input with the dtype and shape of a kind's argument."""
        formal = next(value for value in self._function(kind).inputs if value.name == argument)
        return self._inputs.setdefault(name or argument, like(formal, name or argument))

    def _weight(self, formal: ir.Value, path: str) -> ir.Value:
        name = f"model.{path}.{formal.name}" if path else _OUTER_NAMES[str(formal.name)]
        return self._weights.setdefault(name, like(formal, name))

    def _call(self, kind: str, path: str, arguments: Sequence[ir.Value]) -> list[ir.Value]:
        function = self._function(kind)
        weights = [self._weight(formal, path) for formal in function.inputs[len(arguments) :]]
        results = self._kinds[kind].results
        prefix = path or kind
        outputs = [like(f, f"{prefix}.{name}") for f, name in zip(function.outputs, results, strict=True)]
        node = ir.node(kind, [*arguments, *weights], domain=KIND_DOMAIN, outputs=outputs, name=prefix)
        node.metadata_props["dsv3.path"] = path
        self._nodes.append(node)
        return outputs


def _renamed(value: ir.Value, name: str) -> ir.Value:
    value.name = name
    return value
