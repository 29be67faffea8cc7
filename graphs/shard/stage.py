"""A pipeline stage: some of the layers, with the embedding before the first of all and the head behind the last.

Given -> Result, for the last of two stages of four layers::

    h, cos, sin = embed(input_ids, start, ..)           cos, sin = angles(input_ids, start, ..)
    layers.0.hidden = dense_layer(h, ..)
    layers.1.hidden = moe_layer(layers.0.hidden, ..)    an input of the graph
    layers.2.hidden = moe_layer(layers.1.hidden, ..)    the same
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.values import is_weight, like

_CACHE = "latent_cache."
# The results of the embedding kind that every stage needs: the rotary angles.
_ANGLES = slice(1, 3)


def stage_graph(whole: GraphWithWeights, layers: Sequence[int], first: bool, last: bool) -> GraphWithWeights:
    """The trunk's graph with `layers` only; the given one stays as it is.

    Args:
        whole: A graph of layer-kind calls.
        layers: Consecutive layers, at least one.
        first: Whether the embedding belongs to it; else it has the hidden states of the layer before as an input.
        last: Whether the head belongs to it; else those of its own last layer are an output.
    """
    builder = _Builder(whole)
    paths = {f"layers.{layer}" for layer in layers}
    for call in whole.model.graph:
        path = call.metadata_props["dsv3.path"]
        if call.op_type == "embed" and not first:
            builder.angles(call)
        elif path in paths or call.op_type == "embed" or (last and call.op_type == "head"):
            builder.call(call)
    return builder.graph(None if last else f"layers.{layers[-1]}.hidden")


class _Builder:
    """Collects the calls of a stage; what none of them computes becomes an input."""

    def __init__(self, whole: GraphWithWeights) -> None:
        self._whole = whole
        self._functions: dict[str, ir.Function] = {}
        self._values: dict[ir.Value, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._weights: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._caches = 0

    def call(self, call: ir.Node) -> None:
        """A call as it is."""
        function = self._function(call)
        self._functions.setdefault(function.name, function.clone())
        self._append(call, function.name, call.inputs, call.outputs)

    def angles(self, call: ir.Node) -> None:
        """The embedding kind's call without the embedding."""
        function = self._function(call).clone()
        function.name = "angles"
        outputs = list(function.outputs)[_ANGLES]
        function.outputs.clear()
        function.outputs.extend(outputs)
        remove_dead_nodes(function)
        kept = [place for place, value in enumerate(function.inputs) if value.uses() or not is_weight(value)]
        inputs = [function.inputs[place] for place in kept]
        function.inputs.clear()
        function.inputs.extend(inputs)
        self._functions[function.name] = function
        self._append(call, function.name, [call.inputs[place] for place in kept], call.outputs[_ANGLES])

    def graph(self, hidden: str | None) -> GraphWithWeights:
        """The stage, with the value of the name `hidden` as its first output if there is one."""
        before = self._whole.model.graph
        outputs = [self._values[value] for value in before.outputs if value in self._values]
        if hidden is not None:
            outputs.insert(0, next(value for value in self._values.values() if value.name == hidden))
        imports = dict(before.opset_imports)
        inputs = [*self._inputs, *self._weights]
        graph = ir.Graph(inputs, outputs, nodes=self._nodes, opset_imports=imports, name=before.name)
        model = ir.Model(
            graph, ir_version=self._whole.model.ir_version, producer_name="dsv3export",
            functions=list(self._functions.values()),
        )  # fmt: skip
        names = [str(value.name) for value in self._weights]
        return GraphWithWeights(model, {name: self._whole.weights[name] for name in names})

    def _function(self, call: ir.Node) -> ir.Function:
        return self._whole.model.functions[(call.domain, call.op_type, "")]

    def _append(
        self, call: ir.Node, kind: str, inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]
    ) -> None:  # fmt: skip
        arguments = [self._value(value) for value in inputs if value is not None]
        for value in outputs:
            cache = str(value.name).startswith(_CACHE)
            # its input was counted just before
            self._values[value] = like(value, f"{_CACHE}{self._caches - 1}.updated" if cache else None)
        results = [self._values[value] for value in outputs]
        node = ir.node(kind, arguments, domain=call.domain, outputs=results, name=call.name)
        node.metadata_props.update(call.metadata_props)
        self._nodes.append(node)

    def _value(self, value: ir.Value) -> ir.Value:
        if value not in self._values:
            name = str(value.name)
            if name.startswith(_CACHE):  # caches are counted within the stage
                name, self._caches = f"{_CACHE}{self._caches}", self._caches + 1
            self._values[value] = like(value, name)
            (self._weights if is_weight(value) else self._inputs).append(self._values[value])
        return self._values[value]


def remove_dead_nodes(function: ir.Function) -> None:
    """Remove the nodes of which nothing is used."""
    needed = set(function.outputs)
    for node in reversed(list(function)):
        if any(value in needed for value in node.outputs):
            needed |= {value for value in node.inputs if value is not None}
        else:
            _remove(function, node)


def _remove(function: ir.Function, node: ir.Node) -> None:
    if any(value.uses() for value in node.outputs):
        raise InternalError(f"{node.name} is used by a node of which nothing is")
    function.remove(node, safe=True)
