"""Rewriting layer kinds together with their weights.

A pass replaces nodes of a kind and may give them weights of another layout. `KindRewriter` collects what happens in
one kind; `rebuild` then makes the main graph call the kinds with the new weights and works out, for each of them, the
expression over the model's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.values import is_weight, like, mark_weight, own_model
from dsv3export.graphs.weight_expr import FLOAT32, WeightExpr, leaf


@dataclass(frozen=True)
class GraphWithWeights:
    """A model and, for each weight input of its main graph, how that comes about.

    Attributes:
        native: Of a graph lowered to ONNX Runtime's CPU provider: the same for the native kernels; its weights are
            among these.
    """

    model: ir.Model
    weights: Mapping[str, WeightExpr]
    native: ir.Model | None = None

    @classmethod
    def traced(cls, model: ir.Model) -> GraphWithWeights:
        """A freshly traced model: every weight is itself."""
        names = [str(value.name) for value in model.graph.inputs if is_weight(value)]
        return cls(model, {name: leaf(name) for name in names})

    def copy(self) -> GraphWithWeights:
        """One that may be used up while this is kept."""
        return GraphWithWeights(own_model(self.model), dict(self.weights))


def merged_weights(graphs: Iterable[GraphWithWeights]) -> dict[str, WeightExpr]:
    """The weights of several graphs of one model, in their order; those that graphs share once."""
    merged: dict[str, WeightExpr] = {}
    for graph in graphs:
        for name, expr in graph.weights.items():
            if merged.setdefault(name, expr) != expr:
                raise InternalError(f"two graphs want {name} as {merged[name].describe()} and as {expr.describe()}")
    return merged


@dataclass(frozen=True)
class RewrittenKind:
    """A kind's weight inputs: the formal names before, and value and expression (over those names) of each after."""

    before: tuple[str, ...]
    after: tuple[tuple[ir.Value, WeightExpr], ...]


class KindRewriter:
    """Edits one layer kind in place."""

    def __init__(self, function: ir.Function) -> None:
        self.function = function
        self._before = tuple(str(value.name) for value in function.inputs if is_weight(value))
        self._exprs: dict[str, WeightExpr] = {name: leaf(name) for name in self._before}
        # New weights stand where the first weight stood that they are made of.
        self._order: dict[str, list[ir.Value]] = {
            str(value.name): [value] for value in function.inputs if is_weight(value)
        }

    def weight(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], packing: str, inputs: Sequence[ir.Value],
        params: Mapping[str, Any] | None = None,
    ) -> ir.Value:  # fmt: skip
        """Declare a weight input that `packing` makes of weight inputs."""
        value = mark_weight(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
        expressions = tuple(self._exprs[str(each.name)] for each in inputs)
        self._exprs[name] = WeightExpr(packing, expressions, tuple(sorted((params or {}).items())))
        self._order[self._exprs[name].leaves()[0].name].append(value)
        return value

    def part(self, weight: ir.Value, name: str, packing: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """Declare a weight input that is one part of a weight of the checkpoint, named by `packing`.

        It may have the weight's own name, if nothing uses that any more when the kind is finished.
        """
        value = mark_weight(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
        self._exprs[name] = WeightExpr(packing, name=str(weight.name))
        self._order[str(weight.name)].append(value)
        return value

    def store_as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Declare the same weight in another float type than float32."""
        stored = like(value)
        stored.dtype = dtype
        name = str(value.name)
        self._exprs[name] = WeightExpr(dtype.numpy().name, name=name)
        self._order[name] = [stored]
        return stored

    def cut(self, value: ir.Value, packing: str, params: Mapping[str, Any], shape: Sequence[int]) -> ir.Value:
        """Declare a part of a weight input, which takes its place under the same name."""
        part, name = like(value), str(value.name)
        part.shape = ir.Shape(shape)
        self._exprs[name] = WeightExpr(packing, (self._exprs[name],), tuple(sorted(params.items())))
        for values in self._order.values():
            if value in values:
                values[values.index(value)] = part
        return part

    def replace(
        self, node: ir.Node, op_type: str, domain: str, inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Put another node in a node's place; name, outputs and provenance stay."""
        outputs = [like(value) for value in node.outputs]
        new = ir.node(op_type, inputs, attributes, domain=domain, outputs=outputs, name=node.name)
        new.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(self.function, node, [node], [new], node.outputs, outputs)

    def finish(self) -> RewrittenKind:
        """Set the function's inputs: run-time arguments, then the weights that are used."""
        candidates = [value for values in self._order.values() for value in values]
        used = [value for value in candidates if value.uses()]
        arguments = [value for value in self.function.inputs if not is_weight(value)]
        self.function.inputs.clear()
        self.function.inputs.extend([*arguments, *used])
        return RewrittenKind(self._before, tuple((value, self._exprs[str(value.name)]) for value in used))


def rebuild(
    before: GraphWithWeights,
    kinds: Mapping[str, RewrittenKind],
    functions: Sequence[ir.Function],
    kind_of: Mapping[str, str] | None = None,
) -> GraphWithWeights:
    """The main graph again, calling rewritten kinds.

    Args:
        kinds: By name.
        functions: All functions of the new model: the kinds, and what they call.
        kind_of: Call -> kind, where calls of one kind now go to different ones.
    """
    graph = before.model.graph
    values = {value: like(value) for value in graph.inputs if not is_weight(value)}
    inputs = list(values.values())
    weights: dict[str, ir.Value] = {}
    exprs: dict[str, WeightExpr] = {}
    nodes = []
    for node in graph:
        name_of_kind = kind_of[str(node.name)] if kind_of else node.op_type
        kind = kinds[name_of_kind]
        actual = [str(value.name) for value in node.inputs if value is not None and is_weight(value)]
        names = dict(zip(kind.before, actual, strict=True))
        arguments = [values[value] for value in node.inputs if value is not None and not is_weight(value)]
        for formal, expr in kind.after:
            name = _main_name(str(formal.name), expr, names)
            exprs[name] = _at_call(expr, names, before.weights)
            arguments.append(weights.setdefault(name, like(formal, name)))
        values.update({value: like(value) for value in node.outputs})
        call = ir.node(
            name_of_kind, arguments, domain=node.domain, outputs=[values[v] for v in node.outputs], name=node.name
        )
        call.metadata_props.update(node.metadata_props)
        nodes.append(call)
    results = [values[value] for value in graph.outputs]
    imports = dict(graph.opset_imports) | {function.domain: 1 for function in functions}
    main = ir.Graph([*inputs, *weights.values()], results, nodes=nodes, opset_imports=imports, name=graph.name)
    model = ir.Model(main, ir_version=before.model.ir_version, producer_name="dsv3export", functions=functions)
    return GraphWithWeights(model, exprs)


def _at_call(expr: WeightExpr, names: Mapping[str, str], outer: Mapping[str, WeightExpr]) -> WeightExpr:
    """A formal weight's expression at a call that passes the weights `names`, in terms of the model's weights."""
    if expr.inputs or expr.packing == FLOAT32:
        return expr.substitute({formal: outer[actual] for formal, actual in names.items()})
    actual = outer[names[expr.name]]
    if actual.inputs:
        raise InternalError(f"{actual.describe()} is not a weight of the checkpoint, to be stored as {expr.packing}")
    return WeightExpr(expr.packing, name=actual.name)


def _main_name(formal: str, expr: WeightExpr, names: Mapping[str, str]) -> str:
    """The main graph's name of a formal weight: the prefix of the weight it is made of, and its own path."""
    source = expr.leaves()[0].name
    actual = names[source]
    if formal == source:
        return actual
    if not actual.endswith(source):
        raise InternalError(f"weight {actual} does not end in its path {source}")
    return actual.removesuffix(source) + formal
