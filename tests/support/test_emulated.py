"""The emulated TensorRT is honest: it has no call that the real one lacks, and refuses what a caller forgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3export.dtypes import NUMPY
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device, DeviceBuffer, Stream
from dsv3export.runtime.tensorrt.log import make_log
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.support.emulated import tensorrt
from tests.support.emulated.driver import EmulatedDriver, EmulationError
from tests.support.emulated.engines import RecordedEngine, recorded_engine
from tests.support.emulated.tensorrt import SCRATCH, EmulatedContext, EmulatedTensorRT

pytest.importorskip("tensorrt_rtx_bindings")


@pytest.mark.parametrize(
    ("emulated", "real"),
    [
        (tensorrt.EmulatedRuntime, "Runtime"),
        (tensorrt.EmulatedEngine, "ICudaEngine"),
        (tensorrt.EmulatedContext, "IExecutionContext"),
        (tensorrt.EmulatedConfig, "IRuntimeConfig"),
        (tensorrt.EmulatedCache, "IRuntimeCache"),
    ],
)
def test_every_call_exists(emulated: type, real: str) -> None:
    own = {name for name in dir(emulated) if not name.startswith("_")} - {"strategy", "engine"}
    assert own <= set(dir(getattr(load_tensorrt("tensorrt-rtx"), real)))


@pytest.fixture(scope="module")
def recorded(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedEngine:
    return recorded_engine(tiny_bf16, tmp_path_factory.mktemp("emulated") / "x.engine", precision="fp32", layers="0:1")


class Layer:
    """The first layer's decode engine, ready to be run with everything bound; tests take one thing away."""

    def __init__(self, recorded: RecordedEngine) -> None:
        self.driver = EmulatedDriver()
        self.device = Device(driver=Driver(self.driver))
        self.stream: Stream = self.device.stream()
        trt = EmulatedTensorRT(recorded.recorder, self.driver)
        self.log = make_log(trt)
        engine = trt.Runtime(self.log).deserialize_cuda_engine(recorded.files().graph("dense_layer.decode"))
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.context: EmulatedContext = engine.create_execution_context(config)
        self.scratch = self.device.allocate(SCRATCH)
        self.context.set_device_memory(self.scratch.address, SCRATCH)
        self.length = np.ones(1, np.int64)
        self.buffers: dict[str, DeviceBuffer] = {}
        for tensor in engine.tensors.values():
            shape = [1 if size == -1 else size for size in tensor.shape]
            if tensor.is_input and -1 in tensor.shape:
                assert self.context.set_input_shape(tensor.name, shape)
            if tensor.on_host:
                self.context.set_tensor_address(tensor.name, self.length.ctypes.data)
                continue
            self.buffers[tensor.name] = self.device.allocate(int(np.prod(shape)) * 8)
            self.stream.zero(self.buffers[tensor.name].address, self.buffers[tensor.name].nbytes)
            self.context.set_tensor_address(tensor.name, self.buffers[tensor.name].address)
        self.output = next(name for name in self.buffers if engine.get_aliased_input_tensor(name))
        self.context.set_tensor_address(self.output, self.buffers["cache"].address)

    def run(self) -> bool:
        return self.context.execute_async_v3(self.stream.address)

    def enqueue(self) -> None:
        assert self.run()


@pytest.fixture
def layer(recorded: RecordedEngine) -> Layer:
    return Layer(recorded)


def test_with_everything_bound_it_runs(layer: Layer) -> None:
    assert layer.run(), layer.log.reason()
    layer.stream.synchronise()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda layer: layer.context._addresses.pop("hidden"), "hidden has no address or shape"),
        (lambda layer: layer.context._shapes.pop("hidden"), "hidden has no address or shape"),
        (lambda layer: layer.context._addresses.pop("length"), "length has no address or shape"),
        (
            lambda layer: layer.context.set_tensor_address("hidden", layer.buffers["hidden"].address + 8),
            "hidden: address .* is not aligned",
        ),
        (
            lambda layer: layer.context.set_tensor_address(layer.output, layer.buffers["hidden"].address),
            "must have the address of cache",
        ),
        (lambda layer: layer.length.fill(0), r"length = \[0\] is not within the profile"),
        (lambda layer: layer.length.fill(129), r"length = \[129\] is not within the profile"),
    ],
)
def test_what_tensorrt_would_refuse(layer: Layer, spoil: Callable[[Layer], object], reason: str) -> None:
    spoil(layer)
    assert not layer.run()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(layer.log.reason())


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("hidden", (5, 1, 256), r"not within the profile"),
        ("hidden", (1, 3, 256), r"not within the profile"),
        ("hidden", (1, 1, 255), r"\(1, 1, 255\) is not \(-1, -1, 256\)"),
        ("hidden", (1, 256), r"is not \(-1, -1, 256\)"),
        ("nobody", (1,), "nobody is no input"),
    ],
)
def test_sizes_that_tensorrt_would_refuse(layer: Layer, name: str, shape: tuple[int, ...], reason: str) -> None:
    assert not layer.context.set_input_shape(name, shape)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(layer.log.reason())


def test_memory_that_is_too_small_or_gone(layer: Layer) -> None:
    small = layer.device.allocate(8)
    layer.context.set_tensor_address("hidden", small.address)
    with pytest.raises(EmulationError, match="do not lie in one allocation"):
        layer.run()
    layer.context.set_tensor_address("hidden", layer.buffers["hidden"].address)
    layer.stream.drain()
    del layer.buffers["hidden"]
    with pytest.raises(EmulationError, match="freed or was never allocated"):
        layer.run()


def test_memory_in_the_wrong_place(layer: Layer) -> None:
    pinned = layer.device.pinned(1 << 12)
    layer.context.set_tensor_address("hidden", pinned.address)
    with pytest.raises(EmulationError, match="do not lie in one allocation of that kind"):
        layer.run()


def test_a_result_is_not_there_before_it_is_waited_for(layer: Layer) -> None:
    name = next(name for name in layer.buffers if name.startswith("hidden") and name != "hidden")
    out, nbytes = layer.buffers[name], NUMPY["F32"].itemsize * 256
    layer.stream.synchronise()
    seen = layer.driver.device_bytes(layer.buffers["hidden"].address, nbytes).view(np.float32)
    seen[:] = 1
    layer.run()
    assert not layer.driver.device_bytes(out.address, nbytes).any()
    layer.stream.synchronise()
    assert layer.driver.device_bytes(out.address, nbytes).any()


def test_a_capture_needs_a_run_at_the_same_sizes_before(layer: Layer) -> None:
    with pytest.raises(EmulationError, match="without an ordinary run"):
        layer.stream.captured(layer.enqueue)


def test_a_graph_does_not_outlive_its_context(layer: Layer) -> None:
    layer.run()
    layer.stream.synchronise()
    graph = layer.stream.captured(layer.enqueue)
    layer.stream.launch(graph)
    layer.stream.synchronise()
    layer.context.set_input_shape("hidden", (2, 1, 256))
    layer.stream.launch(graph)
    with pytest.raises(EmulationError, match="after its graph was captured"):
        layer.stream.synchronise()
