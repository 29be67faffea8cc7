"""Computes a recorded network on torch tensors: what TensorRT was told, with the meaning its documentation gives it.

A network is strongly typed, so each tensor has the type that TensorRT states for it. 16-bit layers accumulate in
float32 and round at their output; a real engine may fuse layers and round less often, never more. Each computed
tensor's type and static sizes are held against TensorRT's own account of them. A layer without a rule is refused by
name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.record import Assignment, Call, Record, Ref, TensorFact, Value
from dsv3export.graphs.lower.tensorrt.replay_layers import RULES, Layer, ReplayError
from dsv3export.graphs.lower.tensorrt.replay_layers.layer import DTYPES
from dsv3export.graphs.lower.tensorrt.replay_layers.memory import unpack_int4

_RENAMED = {"output_type": "to_type", "axesMask": "axes"}  # arguments of adding calls -> the layer's attribute
_TENSOR_ATTRIBUTES = {("add_attention_v2", "mask"): 3}  # attributes that are tensors -> the input they are here


class Replay:
    """One network that can be run.

    Attributes:
        inputs: Name -> TensorRT's account of each input.
        outputs: The same of each marked output.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._layers: dict[int, Layer] = {}
        self._producer: dict[int, int] = {}
        self._input_tensors: list[int] = []
        self._output_tensors: list[int] = []
        for event in record.events:
            self._define(event)
        for layer in self._layers.values():
            layer.input_types = ["" if index is None else record.tensors[index].dtype for index in layer.inputs]
        self.inputs = self._facts(self._input_tensors)
        self.outputs = self._facts(self._output_tensors)
        self._order = self._evaluation_order()
        self._refuse_reads_of_overwritten_caches()

    def run(self, inputs: Mapping[str, Tensor], inner: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs by name. A cache that is updated is written in place, and comes out as the same tensor.

        Args:
            inputs: All inputs. INT4: either int8 of the input's shape, or bytes of two numbers each.
            inner: Names of further tensors that are wanted.
        """
        values = {index: self._input(index, inputs) for index in self._input_tensors}
        for number in self._order:
            layer = self._layers[number]
            results = RULES[layer.method].compute(
                layer, [None if index is None else values[index] for index in layer.inputs]
            )
            for position, index in layer.outputs.items():
                self._check(layer, results[position], self._record.tensors[index])
                values[index] = results[position]
        known = {self._record.tensors[index].name: value for index, value in values.items()}
        if missing := [name for name in inner if name not in known]:
            raise ReplayError(f"there is no tensor {missing[0]!r} that the outputs depend on")
        return {name: known[name] for name in (*self.outputs, *inner)}

    def _facts(self, indices: Sequence[int]) -> dict[str, TensorFact]:
        return {self._record.tensors[index].name: self._record.tensors[index] for index in indices}

    def _define(self, event: Call | Assignment) -> None:
        if isinstance(event, Assignment):
            if event.target.kind == "layer" and event.attribute not in ("name", "metadata"):
                self._layer_attribute(self._layer_of(event.target), event.attribute, event.value)
        elif event.target.kind == "layer":
            self._layer_call(event)
        elif event.target.kind == "network":
            self._network_call(event)
        elif event.target.kind not in ("tensor", "builder"):
            raise ReplayError(f"{event.target.kind}.{event.method} is not replayed")

    def _layer_attribute(self, layer: Layer, name: str, value: Value) -> None:
        if not isinstance(value, Ref):
            layer.attributes[name] = value
        elif (layer.method, name) in _TENSOR_ATTRIBUTES:
            _set_input(layer, _TENSOR_ATTRIBUTES[layer.method, name], value)
        else:
            raise layer.error(f"{name} is a tensor, which is not replayed")

    def _layer_of(self, reference: Ref) -> Layer:
        if reference.index not in self._layers:
            name = self._record.layers[reference.index]
            raise ReplayError(f"layer {name!r} was altered through `get_layer`, which does not tell layers apart")
        return self._layers[reference.index]

    def _layer_call(self, call: Call) -> None:
        layer = self._layer_of(call.target)
        if call.method == "get_output" and isinstance(call.result, Ref):
            layer.outputs[_integer(call.args[0])] = call.result.index
            self._producer[call.result.index] = call.target.index
        elif call.method == "set_input":
            _set_input(layer, _integer(call.args[0]), call.args[1])
        elif not call.method.startswith("get_"):
            raise layer.error(f"{call.method} is not replayed")

    def _network_call(self, call: Call) -> None:
        if call.method == "add_input" and isinstance(call.result, Ref):
            self._input_tensors.append(call.result.index)
        elif call.method == "mark_output":
            self._output_tensors += _tensors(call.args)
        elif call.method.startswith("add_") and isinstance(call.result, Ref):
            self._layers[call.result.index] = self._layer(call, call.result)
        elif not call.method.startswith(("get_", "mark_", "set_weights_name")):
            raise ReplayError(f"network.{call.method} is not replayed")

    def _layer(self, call: Call, result: Ref) -> Layer:
        name = self._record.layers[result.index]
        if call.method not in RULES:
            raise ReplayError(f"layer {name!r}: there is no rule to replay {call.method}")
        layer = Layer(call.method, name, constants=self._record.constants)
        told = [*zip(RULES[call.method].parameters, call.args, strict=False), *call.kwargs.items()]
        for parameter, value in told:
            if (tensors := _tensors((value,))) or parameter == "*":
                layer.inputs += tensors or [None]
            else:
                layer.attributes[_RENAMED.get(parameter, parameter)] = value
        if layer.method == "add_fill" and "op" in layer.attributes:
            layer.attributes["operation"] = layer.attributes.pop("op")
        return layer

    def _input(self, index: int, inputs: Mapping[str, Tensor]) -> Tensor:
        fact = self._record.tensors[index]
        if fact.name not in inputs:
            raise ReplayError(f"input {fact.name!r} is missing; given are {', '.join(sorted(inputs))}")
        value = inputs[fact.name]
        if fact.dtype == "INT4" and value.dtype == torch.uint8:
            value = unpack_int4(value).reshape((*value.shape[:-1], value.shape[-1] * 2))
        if value.dtype != DTYPES.get(fact.dtype) or not _fits(value, fact):
            raise ReplayError(f"input {fact.name!r}: {_shown(value)}, expected {fact.dtype}{list(fact.shape)}")
        return value

    def _check(self, layer: Layer, value: Tensor, fact: TensorFact) -> None:
        if value.dtype != DTYPES.get(fact.dtype) or not _fits(value, fact):
            raise layer.error(f"computed {_shown(value)} where TensorRT says {fact.dtype}{list(fact.shape)}")

    def _evaluation_order(self) -> list[int]:
        """Layers that the outputs depend on, each after those it reads."""
        order: dict[int, None] = {}
        stack: list[tuple[int, Iterator[int]]] = []

        def enter(number: int) -> None:
            stack.append(
                (number, iter([self._producer[i] for i in self._layers[number].inputs if i in self._producer]))
            )

        for output in self._output_tensors:
            if output in self._producer:
                enter(self._producer[output])
            while stack:
                number, needed = stack[-1]
                following = next((other for other in needed if other not in order), None)
                if following is None:
                    order[number] = None
                    stack.pop()
                else:
                    enter(following)
        return list(order)

    def _refuse_reads_of_overwritten_caches(self) -> None:
        updates = [layer for layer in self._layers.values() if layer.method == "add_kv_cache_update"]
        for update in updates:
            for layer in self._layers.values():
                if layer is not update and update.inputs[0] in layer.inputs:
                    raise layer.error(f"reads the cache that {update.name!r} overwrites; use what the update returns")


def replay_of(record: Record) -> Replay:
    """What computes the recorded network. Raises ReplayError, by layer, for what cannot be replayed."""
    return Replay(record)


def _set_input(layer: Layer, position: int, tensor: Value) -> None:
    layer.inputs += [None] * (position + 1 - len(layer.inputs))
    layer.inputs[position] = tensor.index if isinstance(tensor, Ref) else None


def _tensors(values: Sequence[Value]) -> list[int]:
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item.index for item in flat if isinstance(item, Ref) and item.kind == "tensor"]


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise ReplayError(f"{value!r} is not an integer")
    return value


def _fits(value: Tensor, fact: TensorFact) -> bool:
    sizes = zip(value.shape, fact.shape, strict=False)
    return value.dim() == len(fact.shape) and all(stated in (-1, size) for size, stated in sizes)


def _shown(value: Tensor) -> str:
    return f"{value.dtype}{list(value.shape)}"
