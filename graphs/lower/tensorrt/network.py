"""A layer kind as a TensorRT network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dsv3export.engine.program import Phase
from dsv3export.graphs.lower.tensorrt.emit import Baked, Emitter, Types
from dsv3export.graphs.lower.tensorrt.flavour import Flavour
from dsv3export.graphs.lower.tensorrt.objects import INetwork, Module
from dsv3export.graphs.lower.tensorrt.row import Key, Row

# Of a kind's results, those that are float32 whatever activations are.
_WIDE = ("cos", "sin", "logits")


def define(
    trt: Module,
    network: INetwork,
    function: ir.Function,
    results: Sequence[str],
    rows: Mapping[Key, Row],
    flavour: Flavour,
    types: Types,
    phase: Phase,
    baked: Baked | None = None,
) -> Emitter:
    """Add a prepared layer kind to an empty network.

    Args:
        results: Names of the kind's results, in order; see `result_names`.
        rows: The flavour's.
        baked: See `Emitter`.

    Returns:
        The emitter, which knows the network's inputs and outputs. It must live until the network is built: it holds
        the constants.
    """
    emitter = Emitter(trt, network, flavour, types, function.name, phase, baked)
    network.name = f"{emitter.kind}.{phase}"
    for value in function.inputs:
        emitter.declare(value, rows)
    for node in function:
        if node.op_type != "Constant":
            emitter.emit(node, rows)
    for value, name in zip(function.outputs, results, strict=True):
        taken = any(name == port.name for port in emitter.inputs)
        emitter.finish(value, f"{name}_out" if taken else name, wide=name in _WIDE)
    return emitter


def result_names(model: ir.Model) -> Mapping[str, Sequence[str]]:
    """Kind -> names of its results, as the main graph's values are called: hidden, updated, logits, ..."""
    return {call.op_type: [str(value.name).rsplit(".", 1)[-1] for value in call.outputs] for call in model.graph}
