"""The networks of embedding and head, as TensorRT-RTX has them, and their engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.program import Limits, Phase, Port
from dsv3export.errors import BackendError, InternalError
from dsv3export.graphs.lower.tensorrt.emit import Emitter, Types
from dsv3export.graphs.lower.tensorrt.engines import Target, build_engine
from dsv3export.graphs.lower.tensorrt.flavour import RTX
from dsv3export.graphs.lower.tensorrt.log import make_logger
from dsv3export.graphs.lower.tensorrt.network import define, result_names
from dsv3export.graphs.lower.tensorrt.objects import ITensor, Module
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows import NATIVE_ROWS, joined
from dsv3export.graphs.spec import STANDARD_OPS
from dsv3export.graphs.trace import graph_for
from dsv3export.runtime.tensorrt_module import load_tensorrt

LIMITS = Limits(slots=4, draft=1, chunk=32, capacity=64)


@pytest.fixture(scope="module")
def trt() -> Module:
    pytest.importorskip("tensorrt_rtx_bindings")
    return load_tensorrt("tensorrt-rtx")


@pytest.fixture(scope="module")
def model(tiny_fp8: Path) -> ir.Model:
    return graph_for(Checkpoint.open(tiny_fp8).config)


def _product(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor]) -> Sequence[ITensor]:
    x, weight = emitter.common(*inputs)
    return [emitter.cast(emitter.matmul(x, weight, transpose_b=True), emitter.compute)]


# Of the dsv3 ops only a product is needed here.
ROWS: dict[Key, Row] = {**NATIVE_ROWS, ("dsv3", "Linear"): Row(_product)}


def _target(trt: Module, compute: str, devices: tuple[str, ...] = ()) -> Target:
    return Target(trt, RTX, ROWS, Types(compute, compute, LIMITS.capacity), LIMITS, devices)


def test_every_standard_op_has_a_row() -> None:
    assert {("", op) for op in STANDARD_OPS - {"Constant"}} <= NATIVE_ROWS.keys()


def test_an_op_with_two_rows_is_refused() -> None:
    with pytest.raises(InternalError, match="dsv3::Linear"):
        joined(({("dsv3", "Linear"): Row(_product)}, {("dsv3", "Linear"): Row(_product)}))


@pytest.mark.parametrize("compute", ["F32", "BF16", "F16"])
def test_the_network_has_the_kinds_names_types_and_shapes(trt: Module, model: ir.Model, compute: str) -> None:
    builder = trt.Builder(make_logger(trt))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    function = next(each for each in model.functions.values() if each.name == "head")
    results = result_names(model)["head"]
    emitter = define(trt, network, function, results, ROWS, RTX, Types(compute, compute, 64), "decode")
    assert emitter.inputs == [Port("hidden", compute, ("B", "S", 256)), Port("logit_rows", "I64", ("R",))]
    assert emitter.weights == [Port("norm.weight", "F32", (256,)), Port("lm_head.weight", "F32", (2048, 256))]
    assert emitter.outputs == [Port("logits", "F32", ("R", 2048)), Port("final_hidden", compute, ("B", "S", 256))]
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    assert [tensor.name for tensor in inputs] == ["hidden", "logit_rows", "norm.weight", "lm_head.weight"]
    assert [tuple(tensor.shape) for tensor in inputs] == [(-1, -1, 256), (-1,), (256,), (2048, 256)]
    names = [network.get_layer(place).name for place in range(network.num_layers)]
    assert len(set(names)) == len(names)
    assert {name.split(":")[0] for name in names} >= {"head.norm", "head.reshape", "head.gather", "head.lm_head"}
    assert not any("Unnamed" in name for name in names)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("kind", ["embed", "head"])
def test_an_engine_is_built_without_a_gpu(trt: Module, model: ir.Model, kind: str, phase: Phase) -> None:
    function = next(each for each in model.functions.values() if each.name == kind)
    built = build_engine(_target(trt, "BF16"), function, result_names(model)[kind], phase)
    # Weights are inputs, so the engine is smaller than its matrix of 2 MB.
    assert 1_000 < len(built.data) < 1_000_000


def test_an_engine_for_chosen_devices(trt: Module, model: ir.Model) -> None:
    function = next(each for each in model.functions.values() if each.name == "embed")
    for_two, for_one = (
        build_engine(_target(trt, "BF16", devices), function, result_names(model)["embed"], "decode")
        for devices in (("sm89", "sm120"), ("sm120",))
    )
    assert for_two.kind == for_one.kind
    assert for_two.data != for_one.data


def test_what_tensorrt_refuses_is_said(trt: Module, model: ir.Model) -> None:
    """A row that multiplies two types, which a strongly typed network may not."""

    def mixed(emitter: Emitter, node: ir.Node, inputs: Sequence[Any]) -> Sequence[ITensor]:
        x, weight = inputs
        return [emitter.matmul(x, weight, transpose_b=True)]

    function = next(each for each in model.functions.values() if each.name == "head")
    target = Target(trt, RTX, {**ROWS, ("dsv3", "Linear"): Row(mixed)}, Types("BF16", "BF16", 64), LIMITS)
    with pytest.raises(BackendError, match="tensorrt-rtx: head for decode"):
        build_engine(target, function, result_names(model)["head"], "decode")


def test_constants_of_every_type_keep_their_numbers(trt: Module) -> None:
    builder = trt.Builder(make_logger(trt))
    network = builder.create_network(0)
    emitter = Emitter(trt, network, RTX, Types("BF16", "BF16", 1), "kind", "decode")
    emitter.scope = "kind.node"
    floats = emitter.constant(np.asarray([1.5, -2.0], np.float32))
    assert (floats.dtype, tuple(floats.shape)) == (trt.DataType.FLOAT, (2,))
    assert emitter.constant([3, 4]).dtype == trt.DataType.INT64
    scalar = emitter.constant(2.0, trt.DataType.BF16)
    assert (scalar.dtype, tuple(scalar.shape)) == (trt.DataType.BF16, ())
