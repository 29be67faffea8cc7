"""Runs a graph node by node in torch, and lets an observer see every value under its provenance name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import Tensor

from dsv3export.errors import InternalError
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.streamed_bank import Argument, ExpertsKernel, StreamedBank, held, through_streamed_experts
from dsv3export.graphs.torch_kernels import KERNELS
from dsv3export.plugins import ALL_OPS, DOMAIN

Observer = Callable[[str, Tensor], None]
# Told of each dsv3 node before it runs, with its inputs.
Watcher = Callable[[ir.Node, Sequence[Argument]], None]


class Kernels(Protocol):
    """Computes nodes by other means than the ops' definitions, maybe on another device."""

    def __call__(
        self, node: ir.Node, inputs: Sequence[Argument], attributes: Mapping[str, Any], /
    ) -> Tensor | tuple[Tensor, ...]: ...


class Weights(Protocol):
    """Weights by graph name, loaded when asked for."""

    def __getitem__(self, name: str) -> Argument: ...


def run(
    model: ir.Model,
    inputs: Mapping[str, Tensor],
    weights: Weights,
    observe: Observer | None = None,
    kernels: Kernels | None = None,
) -> dict[str, Tensor]:
    """Run a model of layer-kind calls.

    Args:
        inputs: The run-time inputs by name; latent caches are updated in place.
        weights: Asked for one call's weights at a time, so that a model larger than memory streams.
        observe: Called with ("layers.3.mlp.experts", tensor) for every value that a node computes.
        kernels: What computes the nodes; by default the ops' definitions.

    Returns:
        The main graph's outputs by name.
    """
    values: dict[ir.Value, Tensor] = {
        value: inputs[str(value.name)] for value in model.graph.inputs if str(value.name) in inputs
    }
    for call in model.graph:
        run_call(model, call, values, weights, observe, kernels=kernels)
    return {str(value.name): values[value] for value in model.graph.outputs}


def run_call(
    model: ir.Model,
    call: ir.Node,
    values: dict[ir.Value, Tensor],
    weights: Weights,
    observe: Observer | None = None,
    watch: Watcher | None = None,
    kernels: Kernels | None = None,
) -> None:
    """Run one call of the main graph, e.g. a layer; several sequences, each with its `values`, may take turns.

    Args:
        values: The call's run-time inputs; its outputs are added.
        weights, observe, kernels: As in `run`.
        watch: Called with each dsv3 node of the call's function and with that node's inputs.
    """
    function = model.functions[(KIND_DOMAIN, call.op_type, "")]
    arguments: list[Argument] = [
        values[v] if v in values else weights[str(v.name)] for v in call.inputs if v is not None
    ]
    path = call.metadata_props["dsv3.path"]
    results = _run_function(function, arguments, f"{path}." if path else "", observe, watch, kernels or by_definition)
    values.update(zip(call.outputs, results, strict=True))
    if observe is not None and path:
        observe(path, results[0])


def sequence_inputs(token_ids: Sequence[int]) -> dict[str, Tensor]:
    """The inputs, apart from the caches, of a sequence that is run as a whole with logits for every token."""
    return {
        "input_ids": torch.tensor([list(token_ids)]),
        "start": torch.zeros(1, dtype=torch.int64),
        "logit_rows": torch.arange(len(token_ids)),
    }


def _run_function(
    function: ir.Function,
    arguments: Sequence[Argument],
    prefix: str,
    observe: Observer | None,
    watch: Watcher | None,
    kernels: Kernels,
) -> list[Tensor]:
    values: dict[ir.Value, Argument] = dict(zip(function.inputs, arguments, strict=True))
    for node in function:
        inputs = [values[value] for value in node.inputs if value is not None]
        if watch is not None and node.domain == DOMAIN:
            watch(node, inputs)
        attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
        result = kernels(node, inputs, attributes)
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip(node.outputs, results, strict=True))
        if observe is not None and node.op_type != "Constant":
            for value, result in zip(node.outputs, results, strict=True):
                observe(f"{prefix}{value.name}", result)
    return [held(values[value]) for value in function.outputs]


def by_definition(
    node: ir.Node, inputs: Sequence[Argument], attributes: Mapping[str, Any]
) -> Tensor | tuple[Tensor, ...]:
    """A node by the definition of its op; implements `Kernels`."""
    if node.domain == DOMAIN:
        op = ALL_OPS[node.op_type]
        absent = [None] * (len(op.inputs) - len(inputs))
        rest = [*absent, *(attributes[a.name] for a in op.attributes)]
        if any(isinstance(value, StreamedBank) for value in inputs):
            x, ids, weights = map(held, inputs[:3])
            return through_streamed_experts(_of_banks(op.kernel, rest), x, ids, weights, inputs[3:])
        result: Tensor | tuple[Tensor, ...] = op.kernel(*inputs, *rest)
        return result
    if node.op_type in KERNELS:
        return KERNELS[node.op_type]([held(value) for value in inputs], attributes)
    raise InternalError(f"the executor has no kernel for {node.domain or 'onnx'}::{node.op_type}")


def _of_banks(kernel: Callable[..., Tensor], rest: Sequence[object]) -> ExpertsKernel:
    return lambda x, ids, weights, banks: kernel(x, ids, weights, *banks, *rest)
