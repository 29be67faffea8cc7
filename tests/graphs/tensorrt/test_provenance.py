"""The networks of all layer kinds, read back: each layer's name tells the node it stems from, types are as wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.program import PHASES, Phase
from dsv3export.graphs.executor import quantised_graph
from dsv3export.graphs.lower.tensorrt.emit import Emitter, Types
from dsv3export.graphs.lower.tensorrt.flavour import RTX
from dsv3export.graphs.lower.tensorrt.log import make_logger
from dsv3export.graphs.lower.tensorrt.network import define, result_names
from dsv3export.graphs.lower.tensorrt.objects import INetwork, Module
from dsv3export.graphs.lower.tensorrt.prepare import is_router, prepare
from dsv3export.graphs.lower.tensorrt.rows import rows_for
from dsv3export.graphs.trace import PARTS
from dsv3export.graphs.values import is_weight
from dsv3export.recipe import Recipe
from dsv3export.runtime.tensorrt_module import load_tensorrt

KINDS = ("embed", "dense_layer", "moe_layer", "head", "mtp_layer")
Models = Mapping[str, ir.Model]


@pytest.fixture(scope="module")
def trt() -> Module:
    pytest.importorskip("tensorrt_rtx_bindings")
    return load_tensorrt("tensorrt-rtx")


@pytest.fixture(scope="module", params=["bf16", "fp8", "int8", "int4"])
def models(request: pytest.FixtureRequest, tiny_fp8: Path) -> Models:
    """Layer kind -> the prepared graph that calls it, at a precision."""
    config = Checkpoint.open(tiny_fp8).config
    recipe = Recipe.for_precision(request.param).unrounded()
    trunk, mtp = (prepare(quantised_graph(config, part, recipe, "BF16"), rows_for(RTX), "BF16").model for part in PARTS)
    return {kind: mtp if kind == "mtp_layer" else trunk for kind in KINDS}


def defined(trt: Module, models: Models, kind: str, phase: Phase) -> tuple[Any, INetwork, Emitter]:
    """A builder, which must live as long as its network; the network; the emitter."""
    builder = trt.Builder(make_logger(trt))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    function = function_of(models, kind)
    results = result_names(models[kind])[kind]
    types = Types("BF16", "BF16", 64)
    return builder, network, define(trt, network, function, results, rows_for(RTX), RTX, types, phase)


def function_of(models: Models, kind: str) -> ir.Function:
    return next(function for function in models[kind].functions.values() if function.name == kind)


def layers(network: INetwork) -> Iterator[Any]:
    return (network.get_layer(place) for place in range(network.num_layers))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_named_after_their_nodes(trt: Module, models: Models, kind: str, phase: Phase) -> None:
    _keep, network, _ = defined(trt, models, kind, phase)
    names = [layer.name for layer in layers(network)]
    assert len(set(names)) == len(names)
    sources = {name.partition(":")[0] for name in names}
    nodes = {f"{kind}.{node.name}": node for node in function_of(models, kind) if node.op_type != "Constant"}
    outputs = {f"{kind}.{network.get_output(place).name}" for place in range(network.num_outputs)}
    assert sources <= nodes.keys() | outputs
    # Sizes that are known, and numbers that have their type already, need no layer.
    assert {nodes[name].op_type for name in nodes.keys() - sources} <= {"Shape", "Cast"}


@pytest.mark.parametrize("phase", PHASES)
def test_inputs_are_arguments_and_weights(trt: Module, models: Models, phase: Phase) -> None:
    for kind in KINDS:
        _keep, network, emitter = defined(trt, models, kind, phase)
        given = [network.get_input(place) for place in range(network.num_inputs)]
        formals = [str(value.name) for value in function_of(models, kind).inputs]
        extra = {"length"} if "layer" in kind else set()
        assert {tensor.name for tensor in given} == {*formals, *extra}
        assert {port.name for port in emitter.weights} == {
            str(value.name) for value in function_of(models, kind).inputs if is_weight(value)
        }
        for tensor in given:
            assert -1 not in tensor.shape or tensor.name not in {port.name for port in emitter.weights}


def test_the_router_is_computed_in_float32(trt: Module, models: Models) -> None:
    """Its weight is stored in 16 bits; nothing between it and the choice of experts is rounded to them."""
    _keep, network, emitter = defined(trt, models, "moe_layer", "decode")
    weight = next(port for port in emitter.weights if port.name == "mlp.gate.weight")
    assert weight.dtype == "BF16"
    router = next(node for node in function_of(models, "moe_layer") if is_router(node))
    products = [
        layer
        for layer in layers(network)
        if layer.name.startswith((f"moe_layer.{router.name}:", "moe_layer.mlp.gate.ids:"))
    ]
    computed = [layer.get_output(0).dtype for layer in products if layer.type == trt.LayerType.ELEMENTWISE]
    assert computed
    assert trt.DataType.BF16 not in computed


def test_softmax_is_computed_in_float32(trt: Module, models: Models) -> None:
    """Softmax is computed in float32 in a decode step."""
    _keep, network, _ = defined(trt, models, "dense_layer", "decode")
    softmaxes = [layer for layer in layers(network) if layer.type == trt.LayerType.SOFTMAX]
    assert [layer.get_output(0).dtype for layer in softmaxes] == [trt.DataType.FLOAT]
