"""One network being defined: a layer kind in one phase, its weights as inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from dsv3export.engine.program import Phase, Port
from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.dtypes import stored_of, stored_type, trt_type
from dsv3export.graphs.lower.tensorrt.flavour import Flavour
from dsv3export.graphs.lower.tensorrt.layers import Layers
from dsv3export.graphs.lower.tensorrt.objects import DataType, INetwork, ITensor, Module
from dsv3export.graphs.lower.tensorrt.row import Key, Row, constant_of, find_row
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.values import is_weight

LENGTH = "length"
# More tokens than this read a weight so often that it is better made into numbers once.
_FEW_TOKENS = 32


@dataclass(frozen=True)
class Types:
    """The types, as safetensors names them, and sizes that a network is defined for.

    Attributes:
        compute: Of activations.
        cache: Of the latent cache.
        capacity: Rows of a slot of the cache; TensorRT wants to know them.
        step_tokens: Most tokens of a decode step, those of all slots together.
    """

    compute: str
    cache: str
    capacity: int
    step_tokens: int = 1


@dataclass(frozen=True)
class Baked:
    """What makes a kind's network that of one layer.

    Attributes:
        name: The layer's, with which its layers' names begin.
        weights: By the kind's formal names, as the weight table has them.
    """

    name: str
    weights: Mapping[str, NDArray[Any]]


class Emitter(Layers):
    """Defines the network of a layer kind.

    Args:
        trt: TensorRT's module, or a recorder that stands for it.
        network: An empty network, strongly typed.
        kind: The layer kind's name, with which each layer's name begins.
        phase: "decode" for a few tokens a slot, "prefill" for chunks of a prompt.
        baked: A layer's weights, to be constants of its network instead of inputs.

    Attributes:
        compute: Type of activations, a member of the module's DataType.
        inputs, weights, outputs: The network's, in order.
        aliases: Output name -> the input whose memory it shares.
    """

    def __init__(
        self,
        trt: Module,
        network: INetwork,
        flavour: Flavour,
        types: Types,
        kind: str,
        phase: Phase,
        baked: Baked | None = None,
    ) -> None:
        super().__init__(trt, network)
        self.flavour, self.types, self.phase = flavour, types, phase
        self.kind = baked.name if baked else kind
        self._baked = baked
        self.compute: DataType = trt_type(trt, types.compute)
        self.float32: DataType = trt.DataType.FLOAT
        self.inputs: list[Port] = []
        self.weights: list[Port] = []
        self.outputs: list[Port] = []
        self.aliases: dict[str, str] = {}
        self._tensors: dict[ir.Value, ITensor] = {}
        self._length: ITensor | None = None

    @property
    def few_tokens(self) -> bool:
        """Whether each token may read the weights for itself."""
        return self.phase == "decode" and self.types.step_tokens <= _FEW_TOKENS

    @property
    def length(self) -> ITensor:
        """Rows of the cache up to the longest slot's length after this step: int64 [1], told by the session.

        It is a size, so TensorRT reads it on the host.
        """
        if self._length is None:
            self._length = self._input(Port(LENGTH, "I64", (1,), host=True))
        return self._length

    def declare(self, value: ir.Value, rows: Mapping[Key, Row]) -> None:
        """Make an input of the layer kind one of the network."""
        name, shape = str(value.name), tuple(dims_of(value))
        if is_weight(value) and self._baked:
            self.scope = f"{self.kind}.{name}"
            self._tensors[value] = self.constant(self._baked.weights[name])
        elif is_weight(value):
            as_bits = any(place in find_row(rows, node).as_bits for node, place in value.uses())
            port = Port(name, "I8" if as_bits else stored_type(value.dtype), shape)
            self.weights.append(port)
            self._tensors[value] = self._add_input(port)
        elif name == "cache":
            slots, _, width = shape
            self._tensors[value] = self._input(Port(name, self.types.cache, (slots, 1, self.types.capacity, width)))
        else:
            dtype = stored_type(value.dtype)
            is_activation = dtype == "F32" and name not in ("cos", "sin")
            self._tensors[value] = self._input(Port(name, self.types.compute if is_activation else dtype, shape))

    def emit(self, node: ir.Node, rows: Mapping[Key, Row]) -> None:
        """Add a node's layers."""
        row = find_row(rows, node)
        self.scope = f"{self.kind}.{node.name}"
        inputs = [
            None if port in row.numbers and constant_of(value) is not None else self._tensor(value)
            for port, value in enumerate(node.inputs)
        ]
        results = row.emit(self, node, inputs)
        for value, tensor in zip(node.outputs, results, strict=True):
            # What a node hands on as it is keeps its name.
            if tensor not in inputs:
                tensor.name = str(value.name)
            self._tensors[value] = tensor

    def finish(self, value: ir.Value, name: str, wide: bool) -> None:
        """Make a value an output of the network.

        Args:
            name: The output's.
            wide: Whether it is float32, whatever activations are.
        """
        self.scope = f"{self.kind}.{name}"
        tensor = self._tensors[value]
        shape = tuple(dims_of(value))
        if tensor.is_network_input:
            raise InternalError(f"{self.scope} is an input of the kind as well")
        if len(shape) == len(tensor.shape):  # a cache has an axis more
            tensor = self.cast(tensor, self.float32 if wide else self.compute)
        else:
            shape = (shape[0], 1, self.types.capacity, shape[2])
            self.aliases[name] = "cache"
        tensor.name = name
        self.network.mark_output(tensor)
        self.outputs.append(Port(name, stored_of(self.trt, tensor.dtype), shape))

    def tensor_names(self, values: Collection[str]) -> dict[str, str]:
        """Those of these values that layers compute -> what their tensors are called in the complete network."""
        known = {str(value.name): tensor for value, tensor in self._tensors.items() if not tensor.is_network_input}
        return {name: str(tensor.name) for name, tensor in known.items() if name in values}

    def show(self, values: Collection[str]) -> dict[str, str]:
        """Let an `IDebugListener` see values while the engine runs; outputs are seen anyway.

        TensorRT keeps such a tensor in memory, so that what computes it is not fused with what reads it.

        Returns:
            As `tensor_names`, without outputs.
        """
        outputs = {port.name for port in self.outputs}
        shown = {value: name for value, name in self.tensor_names(values).items() if name not in outputs}
        for tensor in {str(tensor.name): tensor for tensor in self._tensors.values()}.values():
            if tensor.name in shown.values() and not self.network.mark_debug(tensor):
                raise InternalError(f"{self.kind}: TensorRT does not show {tensor.name}")
        return shown

    def _tensor(self, value: ir.Value | None) -> ITensor | None:
        if value is None:
            return None
        if value not in self._tensors:
            number = constant_of(value)
            if number is None:
                raise InternalError(f"{value.name} is used before it is computed")
            return self.constant(number)
        return self._tensors[value]

    def _input(self, port: Port) -> ITensor:
        self.inputs.append(port)
        return self._add_input(port)

    def _add_input(self, port: Port) -> ITensor:
        shape = [size if isinstance(size, int) else -1 for size in port.shape]
        return self.network.add_input(port.name, trt_type(self.trt, port.dtype), self.trt.Dims(shape))
