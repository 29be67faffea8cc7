"""Little networks that TensorRT-RTX really builds, and their replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.record import Record
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.replay import replay_of
from dsv3export.runtime.tensorrt_module import load_tensorrt

TYPES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int8: "INT8",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.bool: "BOOL",
    torch.uint8: "INT4",  # as bytes of two numbers; TensorRT takes no UINT8 here
    torch.float8_e4m3fn: "FP8",
}

# The network, the module (recorded) and the inputs -> output tensors.
Define = Callable[[Any, Any, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Given:
    """An input's values, and the axes whose length the engine shall not know."""

    value: Tensor
    dynamic: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor: two INT4 numbers lie in a byte."""
        *outer, last = self.value.shape
        return (*outer, last * 2 if self.value.dtype == torch.uint8 else last) if self.value.dim() else ()


def build(define: Define, inputs: Sequence[Given]) -> Record:
    """The record of a network that TensorRT-RTX has built an engine of."""
    trt = Recorder(load_tensorrt("tensorrt-rtx"))
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    profile, tensors = builder.create_optimization_profile(), []
    for index, given in enumerate(inputs):
        shape = tuple(-1 if axis in given.dynamic else size for axis, size in enumerate(given.shape))
        dtype = getattr(trt.DataType, TYPES[given.value.dtype])
        tensors.append(network.add_input(f"input{index}", dtype, shape))
        if given.dynamic:
            least = tuple(1 if size == -1 else size for size in shape)
            profile.set_shape(f"input{index}", least, given.shape, given.shape)
    for index, output in enumerate(define(trt, network, tensors)):
        output.name = f"output{index}"
        network.mark_output(output)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, "TensorRT did not build it"
    record: Record = trt.record_of(engine)
    return record


def replayed(define: Define, inputs: Sequence[Given]) -> list[Tensor]:
    """The outputs of the network, in order."""
    outputs = replay_of(build(define, inputs)).run(named(inputs))
    return [outputs[f"output{index}"] for index in range(len(outputs))]


def named(inputs: Sequence[Given]) -> Mapping[str, Tensor]:
    """As an engine gets them."""
    return {f"input{index}": given.value for index, given in enumerate(inputs)}


def constant(trt: Any, network: Any, values: Any, dtype: Any = np.float32) -> Any:
    """A constant's tensor; the array is the recorded network's to keep."""
    array = np.array(values, dtype, order="C")
    KEPT.append(array)
    return network.add_constant(array.shape, trt.Weights(array)).get_output(0)


KEPT: list[Any] = []
