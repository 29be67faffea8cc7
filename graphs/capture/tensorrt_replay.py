"""The layer kinds of a TensorRT engine replayed on the CPU: what TensorRT was told, on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsv3export.engine.program import Call, Phase, Port
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError
from dsv3export.graphs.capture.tensorrt import Array, Results, TensorRTEngine
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.replay import Replay, replay_of
from dsv3export.graphs.tensors import numpy_array, torch_tensor
from dsv3export.graphs.trace import Part
from dsv3export.runtime.tensorrt.values import Sizes
from dsv3export.runtime.tensorrt_module import load_tensorrt


@dataclass(frozen=True)
class _Network:
    """A network to be replayed. shown: value -> its tensor; outputs are not among them."""

    replay: Replay
    shown: Mapping[str, str]


class ReplayMachine:
    """Computes an engine's calls by replay; see `dsv3export.graphs.lower.tensorrt.replay` for what that proves.

    The networks are defined anew, as the build defines them, for TensorRT's own account of each tensor; nothing is
    built, and the engine's own files are not run.

    Args:
        recorder: TensorRT-RTX's module within a recorder.
    """

    label = "TensorRT-RTX, replayed"

    def __init__(self, engine: TensorRTEngine, recorder: Recorder) -> None:
        self._engine, self._recorder = engine, recorder
        self._networks: dict[tuple[Part, str, Phase], _Network] = {}

    @classmethod
    def of(cls, files: EngineFiles) -> tuple[TensorRTEngine, ReplayMachine]:
        """An engine and its replay. Raises BackendError or EngineError."""
        if files.manifest.backend.name != "tensorrt-rtx":
            raise BackendError(
                f"engine {files.path}: replay", expected="an engine for tensorrt-rtx", got=files.manifest.backend.name,
                fix="Plugins are not replayed: see kernels test, and doctor --conformance.",
            )  # fmt: skip
        recorder = Recorder(load_tensorrt("tensorrt-rtx"))
        engine = TensorRTEngine.of(files, recorder)
        return engine, cls(engine, recorder)

    @contextmanager
    def open(self, part: Part, calls: Sequence[Call]) -> Iterator[_Replayed]:
        """See `Machine.open`."""
        weights = {
            name: _weight(self._engine.files.weight(name), port)
            for call in calls
            for port in self._engine.kinds[part][call.kind].known.weights
            for name in [call.weights[port.name]]
        }
        yield _Replayed(self, weights)

    def network(self, part: Part, kind: str, phase: Phase) -> _Network:
        """Defined when it is first asked for."""
        key = part, kind, phase
        if key not in self._networks:
            layer = self._engine.kinds[part][kind]
            network, emitter = layer.defined(phase)
            replay = replay_of(self._recorder.record(network))
            names = emitter.tensor_names(layer.values.keys())
            outputs = {port.name for port in layer.known.outputs}
            shown = {value: name for value, name in names.items() if name not in outputs}
            self._networks[key] = _Network(replay, shown)
        return self._networks[key]


class _Replayed:
    """`OpenKinds`."""

    def __init__(self, machine: ReplayMachine, weights: Mapping[str, Tensor]) -> None:
        self._machine, self._weights = machine, weights

    def run(self, part: Part, call: Call, phase: Phase, sizes: Sizes, inputs: Mapping[str, Array]) -> Results:
        network = self._machine.network(part, call.kind, phase)
        given = {name: torch_tensor(np.ascontiguousarray(value)) for name, value in inputs.items()}
        weights = {formal: self._weights[name] for formal, name in call.weights.items()}
        with torch.inference_mode():
            results = network.replay.run({**given, **weights}, list(network.shown.values()))
        arrays = {name: numpy_array(value.contiguous()) for name, value in results.items()}
        inner = {value: arrays[name] for value, name in network.shown.items()}
        return Results({name: arrays[name] for name in network.replay.outputs}, inner)


def _weight(array: Array, port: Port) -> Tensor:
    """As the engine gets it: the table's bytes, which an engine may take as integers of 8 bits."""
    tensor = torch_tensor(np.array(array))  # a mapped file cannot be written to, which torch warns of
    return tensor.view(torch.int8) if port.dtype == "I8" else tensor
