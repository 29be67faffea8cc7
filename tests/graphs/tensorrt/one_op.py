"""A layer kind of one dsv3 node, as a TensorRT network and engine, from a case of an op (tests/plugins/cases.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dsv3export.engine.program import Phase, Port
from dsv3export.graphs.lower.tensorrt.emit import Emitter, Types
from dsv3export.graphs.lower.tensorrt.flavour import RTX
from dsv3export.graphs.lower.tensorrt.log import make_logger
from dsv3export.graphs.lower.tensorrt.network import define
from dsv3export.graphs.lower.tensorrt.objects import IBuilder, IBuilderConfig, INetwork, Module
from dsv3export.graphs.lower.tensorrt.prepare import prepare
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.replay import replay_of
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


def define_op(trt: Module, case: Case, compute: str, phase: Phase, most: int = 0) -> OneOp:
    """Define the network of a case.

    Args:
        most: Largest run-time size of the profile; 0 for exactly the case's sizes.
    """
    graph = prepare(_graph(case), NATIVE_ROWS)
    (function,) = graph.model.functions.values()
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    capacity = case.inputs["cache"].shape[1] if "cache" in case.inputs else 1
    results = [f"{port.name}_out" for port in OPS[case.op].outputs]
    # A router is given and gives float32, whatever activations are.
    types = Types("F32" if case.op == "MoERoute" else compute, compute, capacity)
    emitter = define(trt, network, function, results, NATIVE_ROWS, RTX, types, phase)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for port in emitter.inputs:
        if port.host:
            profile.set_shape_input(port.name, [1], [_length(case)], [capacity])
        elif not all(isinstance(size, int) for size in port.shape):
            actual = list(case.inputs[port.name].shape)
            actual = [actual[0], 1, *actual[1:]] if port.name == "cache" else actual
            least, largest = (
                [size if isinstance(size, int) else limit(each) for size, each in zip(port.shape, actual, strict=True)]
                for limit in (lambda _: 1, lambda each: max(most, each))
            )
            profile.set_shape(port.name, least, actual, largest)
    config.add_optimization_profile(profile)
    weights = {name: _packed(expr, case) for name, expr in graph.weights.items()}
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
    """A main graph that calls a kind of one node; the kind's inputs are called as the op's."""
    op, formals, actuals = OPS[case.op], [], []
    for name, array in case.inputs.items():
        symbols = _symbols(case, name)
        shape = [*symbols, *array.shape[len(symbols) :]]
        dtype = ir.DataType.from_numpy(array.dtype)
        pair = [ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)) for _ in range(2)]
        if not symbols:
            pair = [mark_weight(value) for value in pair]
        formals.append(pair[0])
        actuals.append(pair[1])
    outputs = [
        [
            ir.Value(name=port.name, type=ir.TensorType(ir.DataType.FLOAT), shape=_output_shape(array))
            for port, array in zip(op.outputs, computed(case), strict=True)
        ]
        for _ in range(2)
    ]
    node = ir.node(op.name, formals, dict(case.attributes), domain="dsv3", outputs=outputs[0], name="experts")
    node.metadata_props["dsv3.module"] = "self_attn"
    body = ir.Graph(formals, outputs[0], nodes=[node], opset_imports={"": 24, "dsv3": 1})
    function = ir.Function("dsv3.kinds", "one_op", graph=body, attributes=[])
    call = ir.node("one_op", actuals, domain="dsv3.kinds", outputs=outputs[1], name="call")
    main = ir.Graph(actuals, outputs[1], nodes=[call], opset_imports={"": 24, "dsv3.kinds": 1}, name="main")
    return GraphWithWeights.traced(ir.Model(main, ir_version=11, functions=[function]))


def _symbols(case: Case, name: str) -> tuple[str, ...]:
    if name == "x":
        return ("B", "S") if case.inputs["x"].ndim == 3 else ("T",)
    return RUN_TIME.get(name, ())


def _output_shape(array: Array) -> ir.Shape:
    symbols = ("B", "S") if array.ndim == 3 else ("T",)
    return ir.Shape([*symbols, *array.shape[len(symbols) :]])


def _packed(expr: WeightExpr, case: Case) -> Array:
    if not expr.inputs:
        return case.inputs[expr.name]
    return PACKINGS[expr.packing]([_packed(each, case) for each in expr.inputs], dict(expr.params))
