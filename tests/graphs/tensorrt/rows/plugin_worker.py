"""Networks with plugins, replayed: native layers on torch, plugins by their own kernels in Triton's interpreter.

A process of its own, since Triton decides at import whether it interprets. TensorRT-RTX stands for TensorRT: it takes
all but the plugins, whose outputs are given to it as inputs of the types and shapes that the plugin states. Prints a
line of JSON: what each case came to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dsv3export.engine.program import Phase
from dsv3export.graphs.lower.tensorrt import replay
from dsv3export.graphs.lower.tensorrt.dtypes import stored_of, trt_type
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.flavour import FULL
from dsv3export.graphs.lower.tensorrt.record import Call, Record, Ref
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.replay_layers import Layer, Rule
from dsv3export.graphs.lower.tensorrt.rows import plugins, rows_for
from dsv3export.plugins.kernels.calls import TorchCall
from dsv3export.plugins.kernels.interpreter import interpret, start_interpreting
from dsv3export.plugins.kernels.plugin import Attribute, Plugin, TensorType
from dsv3export.plugins.kernels.sizes import Size
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.graphs.tensorrt.one_op import NATIVE_CASES, computed, define_op, replayed_inputs
from tests.plugins.cases import Array, Case

TARGET = 90


class Unknown:
    """A size that a network knows at run time only; implements `Expression`."""

    def _same(self, *_: object) -> Size:
        return self

    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = ceil_div = at_most = _same


class PluginLayer:
    """A plugin's layer: its outputs are inputs of the network, by way of a cast where the type allows one."""

    def __init__(self, emitter: Emitter, plugin: Plugin, inputs: Any, attributes: Mapping[str, Attribute]) -> None:
        self.name = ""
        self.plugin, self.attributes = plugin, dict(attributes)
        self.inputs: tuple[Ref, ...] = tuple(tensor._reference for tensor in inputs)
        types = [
            TensorType(
                stored_of(emitter.trt, tensor.dtype), tuple(Unknown() if s < 0 else int(s) for s in tensor.shape)
            )
            for tensor in inputs
        ]
        self.outputs, self._shown = [], []
        for place, result in enumerate(plugin.outputs(types, attributes)):
            shape = [size if isinstance(size, int) else -1 for size in result.shape]
            kind, name = trt_type(emitter.trt, result.dtype), f"plugin{len(LAYERS)}.{place}"
            given = emitter.network.add_input(name, kind, emitter.trt.Dims(shape))
            self.outputs.append(given._reference)
            shown = given if result.dtype == "F8_E4M3" else emitter.network.add_cast(given, kind).get_output(0)
            self._shown.append(shown)
        LAYERS.append(self)

    def get_output(self, place: int) -> Any:
        return self._shown[place]


LAYERS: list[PluginLayer] = []


def with_plugins(record: Record) -> Record:
    """The record with the plugins as the layers that make what was given as inputs."""
    given = {layer.outputs[0]: layer for layer in LAYERS}
    rest = {output for layer in LAYERS for output in layer.outputs}
    events: list[Any] = []
    layers = dict(record.layers)
    for event in record.events:
        result = event.result if isinstance(event, Call) and event.method == "add_input" else None
        if result in given:
            layer = given[result]
            made = Ref("layer", len(layers) + 1000)
            layers[made.index] = layer.name
            events.append(Call(event.target, "add_plugin", (layer.inputs, LAYERS.index(layer)), {}, made))
            events += [Call(made, "get_output", (n,), {}, output) for n, output in enumerate(layer.outputs)]
        elif result not in rest or result is None:
            events.append(event)
    return replace(record, events=events, layers=layers)


def run_plugin(layer: Layer, inputs: Any) -> Any:
    plugin = LAYERS[layer.integer("plugin")]
    return TorchCall(interpret, TARGET)(plugin.plugin, inputs, **plugin.attributes)


def run(recorder: Recorder, case: Case, compute: str, phase: Phase) -> tuple[list[Array], list[str]]:
    """What a case's network computes, and the plugins in it."""
    LAYERS.clear()
    one = define_op(recorder, case, compute, phase, rows=rows_for(FULL), flavour=FULL)
    results = replay.Replay(with_plugins(recorder.record(one.network, one.config))).run(replayed_inputs(one))
    outputs = [results[port.name].double().numpy() for port in one.emitter.outputs]
    return outputs, [layer.plugin.name for layer in LAYERS]


def rounded(case: Case) -> Case:
    return replace(case, name=f"{case.name}_1x128", attributes={**case.attributes, "activations": "1x128"})


def cases() -> list[Case]:
    """Ops that have plugins, but for sizes that the kernels' own checks have; FP8 ones with rounded activations too."""
    ops, passed_over = {op for _, op in plugins.ROWS}, ("true_dims", "tiles", "ties", "v2_", "up_to_capacity")
    chosen = [case for case in NATIVE_CASES if case.op in ops and not any(part in case.name for part in passed_over)]
    return chosen + [rounded(case) for case in chosen if case.op in ("LinearFp8Block", "MoEExpertsFp8Block")]


def variants(case: Case) -> list[tuple[str, Phase]]:
    """What a case is computed in; its row tells the phases apart for attention and experts only."""
    found: list[tuple[str, Phase]] = [("BF16", "decode"), ("F32", "decode")]
    return [*found, ("BF16", "prefill")] if case.op.startswith(("Mla", "MoEExperts")) else found


def outcome(recorder: Recorder, case: Case, compute: str, phase: Phase) -> dict[str, Any]:
    actual, names = run(recorder, case, compute, phase)
    expected = computed(case) if case.attributes.get("activations") == "1x128" else case.expected()
    distances = []
    for result, right in zip(actual, expected, strict=True):
        largest = max(1.0, float(np.abs(right).max()))
        distances.append(float(np.abs(result.reshape(right.shape) - right).max()) / largest)
    # JSON has no NaN.
    found = [distance if distance == distance else 1e300 for distance in distances]
    return {"case": str(case), "compute": compute, "phase": phase, "distances": found, "plugins": names}


def main() -> None:
    start_interpreting()
    plugins.add_plugin = PluginLayer  # type: ignore[assignment]  # a class for the function
    # Short sequences in several parts too.
    plugins._TOKENS_A_PART = 4
    replay.RULES["add_plugin"] = Rule(("*", "plugin"), run_plugin)
    recorder = Recorder(load_tensorrt("tensorrt-rtx"))
    found = [outcome(recorder, case, compute, phase) for case in cases() for compute, phase in variants(case)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
