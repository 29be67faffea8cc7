"""A lowered graph for one rank, cut at its collectives into graphs that a backend runs at a stretch.

Given -> Result, for a layer of which two ranks share the heads::

    function moe_layer: a .. o_proj, AllReduce, b .. add, AllReduce, c
                                                    segment-000: embed, a
                                                    all_reduce layers.0.self_attn.o_proj
                                                    segment-001: b
                                                    all_reduce layers.0.mlp.add
                                                    segment-002: c, and a of the next layer

A value that is reduced or gathered has one name before and after it. Others are named by their place in the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import onnx_ir as ir

from dsv3export.engine.parallel import Group
from dsv3export.engine.segments import AllReduce, Gather, Recv, Run, SegmentPart, Send, Step
from dsv3export.errors import InternalError
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.values import is_weight, like
from dsv3export.plugins import COLLECTIVES, DOMAIN


@dataclass(frozen=True)
class Segments:
    """The program of a part of the model, and its segments by name; weights are inputs of theirs that say so."""

    part: SegmentPart
    models: Mapping[str, ir.Model]


@dataclass(frozen=True)
class _Piece:
    """Nodes of a kind between two collectives, as a function of their own.

    Attributes:
        inputs, outputs: The kind's values that the function's stand for.
    """

    function: ir.Function
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


@dataclass(frozen=True)
class _Call:
    """A call of a piece: values of the whole graph by place."""

    function: ir.Function
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


@dataclass(frozen=True)
class _Exchange:
    """A collective between two segments."""

    step: Step
    before: ir.Value


def cut_segments(model: ir.Model, prefix: str, received: str | None = None, sent: str | None = None) -> Segments:
    """Cut a lowered graph of layer-kind calls.

    Args:
        prefix: What the segments' names begin with.
        received: The input that comes from the previous stage.
        sent: The output that goes to the next one.
    """
    graph = model.graph
    pieces = {function.name: _pieces(function) for function in model.functions.values() if _is_kind(function)}
    items = [item for call in graph for item in _items(call, model, pieces[call.op_type])]
    results = list(graph.outputs)
    steps: list[Step] = [] if received is None else [Recv(received)]
    models: dict[str, ir.Model] = {}
    for place, item in enumerate(items):
        if isinstance(item, _Exchange):
            steps.append(item.step)
        elif place == 0 or isinstance(items[place - 1], _Exchange):
            end = next((i for i in range(place, len(items)) if isinstance(items[i], _Exchange)), len(items))
            calls = [each for each in items[place:end] if isinstance(each, _Call)]
            wanted = {*results, *_used(items[end:])}
            name = f"{prefix}-{len(models):03d}"
            models[name] = _segment(name, calls, wanted, model)
            steps.append(_run(name, models[name]))
    if sent is not None:
        steps.append(Send(sent))
    run_time = [str(value.name) for value in graph.inputs if not is_weight(value)]
    part = SegmentPart(
        tuple(name for name in run_time if name != received),
        tuple(str(value.name) for value in results if value.name != sent),
        tuple(steps),
    )
    return Segments(part, models)


def _is_kind(function: ir.Function) -> bool:
    return function.domain == KIND_DOMAIN


def _is_collective(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in COLLECTIVES


def _pieces(function: ir.Function) -> list[_Piece | ir.Node]:
    """A kind's nodes: pieces, and the collectives between them."""
    runs: list[list[ir.Node] | ir.Node] = []
    for node in function:
        if _is_collective(node):
            runs.append(node)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(node)
        else:
            runs.append([node])
    count = sum(isinstance(run, list) for run in runs)
    pieces: list[_Piece | ir.Node] = []
    for place, run in enumerate(runs):
        if isinstance(run, ir.Node):
            pieces.append(run)
            continue
        name = function.name if count == 1 else f"{function.name}.{sum(isinstance(p, _Piece) for p in pieces)}"
        later = [node for other in runs[place + 1 :] for node in (other if isinstance(other, list) else [other])]
        wanted = {*function.outputs, *(value for node in later for value in node.inputs)}
        pieces.append(_piece(name, run, wanted, function))
    return pieces


def _piece(name: str, nodes: Sequence[ir.Node], wanted: set[ir.Value | None], kind: ir.Function) -> _Piece:
    made = {value for node in nodes for value in node.outputs}
    used = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None and value not in made)
    constants = [value for value in used if _is_constant(value)]
    inputs = tuple(value for value in used if value not in constants)
    outputs = tuple(value for node in nodes for value in node.outputs if value in wanted and not _is_constant(value))
    values: dict[ir.Value, ir.Value] = {value: like(value) for value in inputs}
    copies = []
    for node in [*(value.producer() for value in constants), *nodes]:
        if node is None:
            raise InternalError("a constant has no node")
        copies.append(_copy(node, values))
    graph = ir.Graph(
        [values[value] for value in inputs], [values[value] for value in outputs], nodes=copies,
        opset_imports=dict(kind.opset_imports), name=name,
    )  # fmt: skip
    return _Piece(ir.Function(kind.domain, name, graph=graph, attributes=[]), inputs, outputs)


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value]) -> ir.Node:
    """A node on other values; its outputs are added to them."""
    outputs = [like(value) for value in node.outputs]
    values.update(zip(node.outputs, outputs, strict=True))
    inputs = [None if value is None else values[value] for value in node.inputs]
    attributes = list(node.attributes.values())
    copy = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=node.name)
    copy.metadata_props.update(node.metadata_props)
    return copy


def _items(call: ir.Node, model: ir.Model, pieces: Sequence[_Piece | ir.Node]) -> Iterator[_Call | _Exchange]:
    """What a call of a kind becomes."""
    function = model.functions[(call.domain, call.op_type, "")]
    prefix = call.metadata_props["dsv3.path"] or call.op_type
    values: dict[ir.Value, ir.Value] = dict(zip(function.inputs, cast("Sequence[ir.Value]", call.inputs), strict=True))
    values.update(zip(function.outputs, call.outputs, strict=True))
    for node in pieces:
        if isinstance(node, ir.Node):
            before, after = cast("ir.Value", node.inputs[0]), node.outputs[0]
            known = values.get(after)
            name = f"{prefix}.{before.name}" if known is None else str(known.name)
            values[before] = like(before, name)
            values[after] = like(after, name) if known is None else known
    for piece in pieces:
        if isinstance(piece, ir.Node):
            place = values[cast("ir.Value", piece.inputs[0])]
            yield _Exchange(_step(piece, str(place.name)), place)
            continue
        for value in piece.outputs:
            values.setdefault(value, like(value, f"{prefix}.{value.name}"))
        inputs, outputs = ((values[value] for value in each) for each in (piece.inputs, piece.outputs))
        yield _Call(piece.function, tuple(inputs), tuple(outputs))


def _step(node: ir.Node, value: str) -> Step:
    group = cast("Group", node.attributes["group"].as_string())
    return AllReduce(value, group) if node.op_type == "AllReduce" else Gather(value, group, -1)


def _used(items: Sequence[_Call | _Exchange]) -> set[ir.Value]:
    used: set[ir.Value] = set()
    for item in items:
        used |= {item.before} if isinstance(item, _Exchange) else set(item.inputs)
    return used


def _segment(name: str, calls: Sequence[_Call], wanted: set[ir.Value], whole: ir.Model) -> ir.Model:
    """Calls as a model: what they take from elsewhere are its inputs, what is wanted elsewhere its outputs."""
    made = {value for call in calls for value in call.outputs}
    used = dict.fromkeys(value for call in calls for value in call.inputs if value not in made)
    inputs = sorted(used, key=is_weight)
    values: dict[ir.Value, ir.Value] = {value: like(value) for value in (*inputs, *made)}
    nodes = []
    for call in calls:
        arguments, results = ([values[value] for value in each] for each in (call.inputs, call.outputs))
        nodes.append(ir.node(call.function.name, arguments, domain=call.function.domain, outputs=results))
    outputs = [values[value] for call in calls for value in call.outputs if value in wanted]
    kinds = {call.function.name: call.function for call in calls}
    called = {(node.domain, node.op_type, "") for kind in kinds.values() for node in kind}
    functions = [*kinds.values(), *(whole.functions[key] for key in sorted(called) if key in whole.functions)]
    imports = dict(whole.graph.opset_imports)
    graph = ir.Graph([values[v] for v in inputs], outputs, nodes=nodes, opset_imports=imports, name=name)
    return ir.Model(graph, ir_version=whole.ir_version, producer_name="dsv3export", functions=functions)


def _run(name: str, model: ir.Model) -> Run:
    inputs = tuple(str(value.name) for value in model.graph.inputs if not is_weight(value))
    return Run(name, inputs, tuple(str(value.name) for value in model.graph.outputs))
