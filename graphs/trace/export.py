"""One layer kind: reference module -> torch.export -> ONNX function."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
import torch
from torch.export.graph_signature import InputKind

from dsv3export.graphs.opset import KIND_DOMAIN, OPSET_IMPORTS
from dsv3export.graphs.trace.aten import IGNORED, convert
from dsv3export.graphs.trace.emitter import Emitter, module_path
from dsv3export.graphs.trace.kinds import Argument, LayerKind
from dsv3export.graphs.values import mark_weight


def export_kind(kind: LayerKind) -> ir.Function:
    """Trace a layer kind on meta tensors.

    Returns:
        A function whose inputs are the kind's run-time arguments followed by its weights, named by their path in the
        module, and whose outputs are the kind's results.
    """
    with torch.device("meta"):
        module = kind.module()
    program = torch.export.export(
        module,
        tuple(argument.example() for argument in kind.arguments),
        dynamic_shapes=tuple(_dynamic_dims(argument) for argument in kind.arguments),
        strict=False,
    )
    weights = {s.arg.name: str(s.target) for s in program.graph_signature.input_specs if s.kind is InputKind.PARAMETER}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    arguments = [node for node in placeholders if node.name not in weights]
    emitter = Emitter(_symbols(arguments, kind), _single_op_modules(program.graph.nodes))
    inputs = [emitter.input(node, a.name) for node, a in zip(arguments, kind.arguments, strict=True)]
    inputs += [mark_weight(emitter.input(n, weights[n.name])) for n in placeholders if n.name in weights]
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target not in IGNORED:
            convert(emitter, node)
    results: Any = program.graph.output_node().args[0]
    outputs = [emitter.tensor(node) for node in results]
    graph = ir.Graph(inputs, outputs, nodes=emitter.nodes, opset_imports=dict(OPSET_IMPORTS), name=kind.name)
    return ir.Function(KIND_DOMAIN, kind.name, graph=graph, attributes=[])


def _dynamic_dims(argument: Argument) -> dict[int, torch.export.Dim]:
    return {axis: torch.export.Dim(dim) for axis, dim in enumerate(argument.dims) if isinstance(dim, str)}


def _symbols(arguments: list[torch.fx.Node], kind: LayerKind) -> dict[str, str]:
    """torch's size symbols -> our dimension names, read off the arguments' traced shapes."""
    names: dict[str, str] = {}
    for node, argument in zip(arguments, kind.arguments, strict=True):
        for size, dim in zip(node.meta["val"].shape, argument.dims, strict=True):
            if isinstance(dim, str):
                names[str(size.node.expr)] = dim
    return names


def _single_op_modules(nodes: Iterable[torch.fx.Node]) -> frozenset[str]:
    counted = (node for node in nodes if node.op == "call_function" and node.target is not operator.getitem)
    counts = Counter(module_path(node) for node in counted if node.target not in IGNORED)
    return frozenset(path for path, count in counts.items() if path and count == 1)
