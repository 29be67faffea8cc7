"""A layer kind of one dsv3 node, as a TensorRT network and engine, from a case of an op (tests/plugins/cases.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dsv3export.engine.program import Phase, Port
from dsv3export.graphs.lower.tensorrt.emit import Emitter, Types
from dsv3export.graphs.lower.tensorrt.flavour import RTX, Flavour
from dsv3export.graphs.lower.tensorrt.log import make_logger
from dsv3export.graphs.lower.tensorrt.network import define
from dsv3export.graphs.lower.tensorrt.objects import IBuilder, IBuilderConfig, INetwork, Module
from dsv3export.graphs.lower.tensorrt.prepare import prepare
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.replay import replay_of
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows import NATIVE_ROWS
from dsv3export.graphs.packing import PACKINGS
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.values import mark_weight
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.plugins import OPS
from tests.plugins.cases import CASES, Array, Case

# Formal inputs that are known at run time only, and the symbols of their sizes that are.
RUN_TIME: Mapping[str, tuple[str, ...]] = {
    "q_nope": ("B", "S"), "q_pe": ("B", "S"), "cache": ("B", "T"), "kv_c": ("B", "S"), "k_pe": ("B", "S"),
    "start": ("B",), "logits": ("T",), "ids": ("T",), "weights": ("T",),
}  # fmt: skip
# Of the ops that a network may have: its cache has no format of its own, and no size may be 0.
NATIVE_CASES = [
    case
    for case in CASES
    if case.op not in ("LatentAppendHalf", "LatentAppendFp8") and all(array.size for array in case.inputs.values())
]
Shape = Sequence[int | str]
Ports = Mapping[str, tuple[ir.DataType, Shape]]
COMPUTE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class OneOp:
    """A network of one node.

    Attributes:
        weights: Its weight inputs by name, packed.
        errors: What TensorRT has logged.
    """

    case: Case
    builder: IBuilder
    network: INetwork
    config: IBuilderConfig
    emitter: Emitter
    weights: Mapping[str, Array]
    errors: list[str]


def define_op(
    trt: Module,
    case: Case,
    compute: str,
    phase: Phase,
    most: int = 0,
    rows: Mapping[Key, Row] = NATIVE_ROWS,
    flavour: Flavour = RTX,
) -> OneOp:
    """Define the network of a case.

    Args:
        most: Largest run-time size of the profile; 0 for exactly the case's sizes.
    """
    graph = _graph(case)
    capacity = case.inputs["cache"].shape[1] if "cache" in case.inputs else 1
    # A router is given and gives float32, whatever activations are.
    types = Types("F32" if case.op == "MoERoute" else compute, compute, capacity)
    sizes = {
        symbol: (1, size, max(most, size))
        for name, array in case.inputs.items()
        for symbol, size in zip(_symbols(case, name), array.shape, strict=False)
    }
    length = _length(case) if "q_nope" in case.inputs else 1
    return _define(trt, case, graph, types, phase, {**sizes, "length": (1, length, capacity)}, rows, flavour)


def built_of_shapes(
    trt: Module, op: str, inputs: Ports, outputs: Mapping[str, Shape], attributes: Mapping[str, object], phase: Phase,
    sizes: Mapping[str, tuple[int, int, int]], step_tokens: int = 1,
) -> bytes:  # fmt: skip
    """The engine of an op of these shapes, activations in bfloat16, a cache of 4096 rows.

    Args:
        sizes: Symbol -> least, commonest and largest.
    """
    graph = op_graph(op, inputs, outputs, attributes)
    nothing = Case(op, "shapes", {}, attributes)
    one = _define(
        trt, nothing, graph, Types("BF16", "BF16", 4096, step_tokens), phase, {**sizes, "length": (1, 2048, 4096)}
    )
    engine = one.builder.build_serialized_network(one.network, one.config)
    assert engine is not None, one.errors
    return bytes(engine)


def _define(
    trt: Module, case: Case, graph: GraphWithWeights, types: Types, phase: Phase,
    sizes: Mapping[str, tuple[int, int, int]], rows: Mapping[Key, Row] = NATIVE_ROWS, flavour: Flavour = RTX,
) -> OneOp:  # fmt: skip
    prepared = prepare(graph, rows)
    (function,) = prepared.model.functions.values()
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    results = [f"{port.name}_out" for port in OPS[case.op].outputs]
    emitter = define(trt, network, function, results, rows, flavour, types, phase)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for port in emitter.inputs:
        if port.host:
            profile.set_shape_input(port.name, *([size] for size in sizes["length"]))
        elif not all(isinstance(size, int) for size in port.shape):
            shapes = (
                [size if isinstance(size, int) else sizes[size][which] for size in port.shape] for which in range(3)
            )
            profile.set_shape(port.name, *shapes)
    config.add_optimization_profile(profile)
    weights = {name: _packed(expr, case) for name, expr in prepared.weights.items()} if case.inputs else {}
    return OneOp(case, builder, network, config, emitter, weights, logger.errors)


def replayed(recorder: Recorder, one: OneOp) -> list[Array]:
    """What the network computes, by its replay; outputs as the op has them."""
    results = replay_of(recorder.record(one.network, one.config)).run(replayed_inputs(one))
    return [results[port.name].to(torch.float64).numpy() for port in one.emitter.outputs]


def computed(case: Case) -> list[Array]:
    """What the op's own kernel computes."""
    ports = OPS[case.op].inputs
    inputs = [torch_tensor(case.inputs[port.name].copy()) if port.name in case.inputs else None for port in ports]
    results = OPS[case.op].kernel(*inputs, *(case.attributes[each.name] for each in OPS[case.op].attributes))
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


def replayed_inputs(one: OneOp) -> dict[str, torch.Tensor]:
    """The network's inputs for the case, on torch."""
    tensors = {port.name: _tensor(one.weights[port.name], port) for port in one.emitter.weights}
    for port in one.emitter.inputs:
        tensors[port.name] = (
            torch.tensor([_length(one.case)]) if port.host else _tensor(one.case.inputs[port.name], port)
        )
    return tensors


def _length(case: Case) -> int:
    return int(case.inputs["start"].max()) + int(case.inputs["q_nope"].shape[1])


def _tensor(array: Array, port: Port) -> torch.Tensor:
    """An array as the input that it is bound to: floats in the input's type, all else by its bits."""
    if port.name == "cache":
        array = array[:, None]
    if port.dtype in COMPUTE:
        # What nothing may see must be finite, in float16 after a projection too.
        return torch.from_numpy(array.astype(np.float32).clip(-1e3, 1e3)).to(COMPUTE[port.dtype])
    return torch.from_numpy(array.view(np.int8).copy()) if port.dtype == "I8" else torch_tensor(array.copy())


def _graph(case: Case) -> GraphWithWeights:
    ports = {
        name: (ir.DataType.from_numpy(array.dtype), _shape(array, _symbols(case, name)))
        for name, array in case.inputs.items()
    }
    results = zip(OPS[case.op].outputs, computed(case), strict=True)
    outputs = {port.name: _shape(array, ("B", "S") if array.ndim == 3 else ("T",)) for port, array in results}
    return op_graph(case.op, ports, outputs, case.attributes)


def op_graph(
    op: str, inputs: Ports, outputs: Mapping[str, Shape], attributes: Mapping[str, object]
) -> GraphWithWeights:
    """A main graph that calls a kind of one node; the kind's inputs are called as the op's."""
    formals, actuals = ([_value(name, *port) for name, port in inputs.items()] for _ in range(2))
    results = [[_value(name, ir.DataType.FLOAT, shape) for name, shape in outputs.items()] for _ in range(2)]
    for value in (*formals, *actuals):
        if value.name not in (*RUN_TIME, "x"):
            mark_weight(value)
    node = ir.node(op, formals, dict(attributes), domain="dsv3", outputs=results[0], name="op")
    # Of a module that is not the router's.
    node.metadata_props["dsv3.module"] = "self_attn"
    body = ir.Graph(formals, results[0], nodes=[node], opset_imports={"": 24, "dsv3": 1})
    function = ir.Function("dsv3.kinds", "one_op", graph=body, attributes=[])
    call = ir.node("one_op", actuals, domain="dsv3.kinds", outputs=results[1], name="call")
    main = ir.Graph(actuals, results[1], nodes=[call], opset_imports={"": 24, "dsv3.kinds": 1}, name="main")
    return GraphWithWeights.traced(ir.Model(main, ir_version=11, functions=[function]))


def _value(name: str, dtype: ir.DataType, shape: Shape) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _shape(array: Array, symbols: Sequence[str]) -> Shape:
    return (*symbols, *array.shape[len(symbols) :])


def _symbols(case: Case, name: str) -> tuple[str, ...]:
    if name == "x":
        return ("B", "S") if case.inputs["x"].ndim == 3 else ("T",)
    return RUN_TIME.get(name, ())


def _packed(expr: WeightExpr, case: Case) -> Array:
    if not expr.inputs:
        return case.inputs[expr.name]
    return PACKINGS[expr.packing]([_packed(each, case) for each in expr.inputs], dict(expr.params))
