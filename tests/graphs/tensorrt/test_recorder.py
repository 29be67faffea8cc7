"""The recorder: nobody can tell it from TensorRT, it keeps what TensorRT was told, and says what TensorRT refused."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.record import Assignment, Call, Record
from dsv3export.graphs.lower.tensorrt.recorder import Recorder, RefusedError
from dsv3export.graphs.lower.tensorrt.replay import replay_of
from dsv3export.graphs.lower.tensorrt.replay_layers import ReplayError
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.graphs.tensorrt.small_network import Given, build, constant, named

X = Given(torch.arange(6.0).reshape(2, 3), (0,))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(load_tensorrt("tensorrt-rtx"))


def _network(trt: Any) -> Any:
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_network(flags)


def _weighted(trt: Any, network: Any, inputs: Any) -> list[Any]:
    """(x + [1, 2, 3]) transposed."""
    weights = constant(trt, network, [[1.0, 2.0, 3.0]])
    total = network.add_elementwise(inputs[0], weights, op=trt.ElementWiseOperation.SUM)
    total.name = "the sum"
    shuffle = network.add_shuffle(total.get_output(0))
    shuffle.first_transpose = (1, 0)
    return [shuffle.get_output(0)]


def test_a_lowering_cannot_tell_the_recorder_from_the_module(recorder: Recorder) -> None:
    trt = load_tensorrt("tensorrt-rtx")
    network = _network(recorder)
    x = network.add_input("x", recorder.float32, (-1, 3))
    layer = network.add_shuffle(x)

    assert isinstance(network, trt.INetworkDefinition)
    assert isinstance(x, trt.ITensor)
    assert isinstance(layer, trt.IShuffleLayer)
    assert recorder.DataType is trt.DataType
    assert (tuple(x.shape), x.dtype, x.name) == ((-1, 3), trt.float32, "x")
    assert layer.get_input(0) == x
    assert layer.get_output(0) is layer.get_output(0)
    assert (network.num_layers, network.get_layer(0).name, network.get_input(0)) == (1, layer.name, x)


def test_the_record_is_what_tensorrt_was_told() -> None:
    record = build(_weighted, [X])

    told = [
        (event.attribute, event.value) if isinstance(event, Assignment) else event.method
        for event in record.events
        if event.target.kind in ("network", "layer")
    ]
    assert told == [
        "add_input",
        "add_constant",
        "get_output",
        "add_elementwise",
        ("name", "the sum"),
        "get_output",
        "add_shuffle",
        ("first_transpose", (1, 0)),
        "get_output",
        "mark_output",
    ]
    (weights,) = record.constants
    assert (weights.dtype, weights.count) == ("FLOAT", 3)
    assert weights.data.tobytes() == np.array([1, 2, 3], np.float32).tobytes()
    assert record.profiles() == [{"input0": ((1, 3), (2, 3), (2, 3))}]
    assert {fact.name: fact.shape for fact in record.tensors.values()}["output0"] == (3, -1)


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    record = build(_weighted, [X])
    path = tmp_path / "network.npz"

    record.save(path)
    back = Record.load(path)

    assert (back.events, back.build, back.tensors, back.layers) == (
        record.events,
        record.build,
        record.tensors,
        record.layers,
    )
    assert torch.equal(replay_of(back).run(named([X]))["output0"], (X.value + torch.tensor([1.0, 2, 3])).T)


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "network.npz", record=np.frombuffer(b'{"format": 99}', np.uint8))

    with pytest.raises(InternalError, match="a record of format 99, this program reads 1"):
        Record.load(tmp_path / "network.npz")


def test_a_refused_layer_is_told_with_tensorrts_reason(recorder: Recorder) -> None:
    network = _network(recorder)
    x = network.add_input("x", recorder.float32, (2, 3))

    with pytest.raises(
        RefusedError, match=r"TensorRT refused add_dequantize\(.*index=0.*Block quantization is not supported"
    ):
        network.add_dequantize(x, network.add_input("s", recorder.float32, (2, 3)), recorder.float32)


def test_a_refused_attribute_is_told_with_tensorrts_reason(recorder: Recorder) -> None:
    network = _network(recorder)
    x = network.add_input("x", recorder.float32, (2, 3))
    layer = network.add_softmax(x)

    with pytest.raises(RefusedError, match=r"TensorRT refused layer.axes = 6.*"):
        layer.axes = 6


def test_shapes_that_do_not_match_are_told_at_the_build(recorder: Recorder) -> None:
    def product(trt: Any, network: Any, inputs: Any) -> list[Any]:
        none = trt.MatrixOperation.NONE
        return [network.add_matrix_multiply(inputs[0], none, inputs[1], none).get_output(0)]

    with pytest.raises(
        RefusedError, match=r"finds no shape for tensor .*last dimension of input0 = 3 and second to last"
    ):
        build(product, [Given(torch.zeros(2, 3)), Given(torch.zeros(2, 3))])


def test_memory_that_changes_before_the_build_is_noticed() -> None:
    array = np.ones((1, 3), np.float32)

    def forgetful(trt: Any, network: Any, inputs: Any) -> list[Any]:
        weights = network.add_constant((1, 3), trt.Weights(array)).get_output(0)
        array[:] = 2
        return [network.add_elementwise(inputs[0], weights, trt.ElementWiseOperation.SUM).get_output(0)]

    with pytest.raises(InternalError, match="memory of a constant was freed or changed before the build"):
        build(forgetful, [X])


def test_the_record_of_an_engine_is_found_by_its_bytes(recorder: Recorder) -> None:
    builder = recorder.Builder(recorder.Logger(recorder.Logger.ERROR))
    engines = []
    for name in "ab":
        network = builder.create_network(1 << int(recorder.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        layer = network.add_unary(network.add_input(name, recorder.float32, (2,)), recorder.UnaryOperation.NEG)
        network.mark_output(layer.get_output(0))
        engines.append(bytes(builder.build_serialized_network(network, builder.create_builder_config())))

    for name, engine in zip("ab", engines, strict=True):
        assert list(replay_of(recorder.record_of(engine)).inputs) == [name]
    with pytest.raises(KeyError, match="no network was recorded"):
        recorder.record_of(b"another engine")


def test_a_layer_without_a_rule_is_refused_by_name() -> None:
    def padded(trt: Any, network: Any, inputs: Any) -> list[Any]:
        layer = network.add_lrn(inputs[0], 1, 1.0, 1.0, 1.0)
        layer.name = "mlp.norm"
        return [layer.get_output(0)]

    record = build(padded, [Given(torch.zeros(1, 2, 3, 4))])

    with pytest.raises(ReplayError, match=r"layer 'mlp.norm': there is no rule to replay add_lrn"):
        replay_of(record)


def test_a_layer_altered_through_the_network_is_refused() -> None:
    def define(trt: Any, network: Any, inputs: Any) -> list[Any]:
        layer = network.add_softmax(inputs[0])
        network.get_layer(0).name = "renamed"
        network.get_layer(0).set_input(0, inputs[0])
        return [layer.get_output(0)]

    with pytest.raises(ReplayError, match="layer 'renamed' was altered through `get_layer`"):
        replay_of(build(define, [X]))


def test_an_attribute_without_a_meaning_here_is_refused() -> None:
    record = build(_weighted, [X])
    layer = next(
        event.target for event in record.events if isinstance(event, Assignment) and event.target.kind == "layer"
    )
    record.events.append(Call(layer, "set_precision", (1,), {}, None))

    with pytest.raises(ReplayError, match="'the sum': set_precision is not replayed"):
        replay_of(record)


def _two_readers(trt: Any, network: Any, inputs: Any) -> list[Any]:
    cache, update, start = inputs
    updated = network.add_kv_cache_update(cache, update, start, trt.KVCacheMode.LINEAR)
    return [updated.get_output(0), network.add_unary(cache, trt.UnaryOperation.NEG).get_output(0)]


CACHE = [Given(torch.zeros(2, 1, 4, 2)), Given(torch.ones(2, 1, 2, 2)), Given(torch.tensor([0, 1], dtype=torch.int32))]


def test_a_cache_that_is_read_while_it_is_overwritten_is_refused() -> None:
    with pytest.raises(ReplayError, match=r"reads the cache that .* overwrites"):
        replay_of(build(_two_readers, CACHE))


def test_rows_beyond_the_cache_are_refused() -> None:
    record = build(lambda t, n, x: [n.add_kv_cache_update(*x, t.KVCacheMode.LINEAR).get_output(0)], CACHE)
    inputs = {**named(CACHE), "input2": torch.tensor([0, 3], dtype=torch.int32)}

    with pytest.raises(ReplayError, match="slot 1: 2 rows from 3 do not fit a capacity of 4"):
        replay_of(record).run(inputs)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 3).bfloat16(), r"torch.bfloat16\[2, 3\], expected FLOAT\[-1, 3\]"),
        (torch.zeros(2, 4), r"torch.float32\[2, 4\], expected FLOAT\[-1, 3\]"),
        (torch.zeros(3), r"torch.float32\[3\], expected FLOAT\[-1, 3\]"),
    ],
)
def test_inputs_of_another_type_or_shape_are_refused(value: torch.Tensor, message: str) -> None:
    with pytest.raises(ReplayError, match=message):
        replay_of(build(_weighted, [X])).run({"input0": value})


def test_a_missing_input_is_refused() -> None:
    with pytest.raises(ReplayError, match="input 'input0' is missing; given are x"):
        replay_of(build(_weighted, [X])).run({"x": X.value})


def test_a_tensor_that_is_not_what_tensorrt_says_is_noticed() -> None:
    record = build(_weighted, [X])
    index = max(record.tensors)
    fact = record.tensors[index]
    record.tensors[index] = type(fact)(fact.name, "HALF", fact.shape)

    with pytest.raises(ReplayError, match=r"computed torch.float32\[3, 2\] where TensorRT says HALF\[3, -1\]"):
        replay_of(record).run(named([X]))


def test_the_collector_does_not_run_inside_tensorrt(recorder: Recorder) -> None:
    """It may destroy objects of TensorRT, which waits forever for locks that are held while TensorRT logs."""
    enabled: list[bool] = []

    class Log(recorder.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            recorder.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            enabled.append(gc.isenabled())

    network = recorder.Builder(Log()).create_network(1 << int(recorder.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", recorder.float32, (2, 3))
    with pytest.raises(RefusedError):
        network.add_dequantize(x, x, recorder.float32)

    assert enabled
    assert not any(enabled)
    assert gc.isenabled()
