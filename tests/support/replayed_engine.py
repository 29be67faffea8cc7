"""A TensorRT engine that is built with a recorder in place of TensorRT's module, and computed by replay."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from dsv3export.engine.program import PROGRAM, Call, Phase, Port, Program
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.lower.tensorrt.engines import Target, build_kind
from dsv3export.graphs.lower.tensorrt.log import make_logger
from dsv3export.graphs.lower.tensorrt.network import define
from dsv3export.graphs.lower.tensorrt.progress import Steps
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.replay import Replay, replay_of
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from dsv3export.runtime.session import IntArray, Logits
from dsv3export.runtime.tensorrt_module import load_tensorrt

_CACHE_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class RecordedEngine:
    """An engine and the recorder that it was built with. kinds: layer kind -> what it was built of."""

    path: Path
    recorder: Recorder
    kinds: Mapping[str, tuple[Target, ir.Function, Sequence[str]]]

    def define(self, kind: str, phase: Phase, rows: Mapping[Key, Row]) -> Replay:
        """The replay of a kind's network by other rows, without an engine of it."""
        target, function, results = self.kinds[kind]
        trt = self.recorder
        network = trt.Builder(make_logger(trt)).create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        emitter = define(trt, network, function, results, rows, target.flavour, target.types, phase)
        replay = replay_of(trt.record(network))
        del emitter  # the owner of the constants, until here
        return replay


def build_recorded(checkpoint: Path, out: Path, **options: Any) -> RecordedEngine:
    """`build_engine` for TensorRT-RTX; each network is built by TensorRT, and recorded."""
    recorder = Recorder(load_tensorrt("tensorrt-rtx"))
    kinds: dict[str, tuple[Target, ir.Function, Sequence[str]]] = {}

    def build(target: Target, function: ir.Function, results: Sequence[str], steps: Steps) -> Any:
        kinds[function.name] = (target, function, results)
        return build_kind(target, function, results, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsv3export.graphs.lower.tensorrt.backend.load_tensorrt", lambda _: recorder)
        patch.setattr("dsv3export.graphs.lower.tensorrt.compiled.build_kind", build)
        build_engine(checkpoint, out, backend="tensorrt-rtx", **options)
    return RecordedEngine(out, recorder, kinds)


class ReplayedEngine:
    """A `Session` that computes what the engine's networks say.

    Attributes:
        recorded: The engine.
        files, program: Its.
        replays: Layer kind and phase -> its network.
        weights: By their names in the weight table.
        phase: Takes this phase's engines for all steps; None as the runtime does, by the number of tokens.
        inner: Layer kind -> names of tensors in its networks that each step keeps.
        seen: What the last step kept, by provenance: ``layers.1.mlp.gate.ids``; each layer's output as ``layers.1``.
        keep: Is given `seen` after each step.
    """

    cache_on_host = False

    def __init__(self, recorded: RecordedEngine) -> None:
        self.recorded, self.files = recorded, EngineFiles.open(recorded.path)
        self.program = Program.from_json(self.files.graph(PROGRAM))
        self.phase: Phase | None = None
        self.inner: Mapping[str, Sequence[str]] = {}
        self.seen: dict[str, Tensor] = {}
        self.keep: Callable[[Mapping[str, Tensor]], None] = lambda seen: None
        self.replays: dict[tuple[str, Phase], Replay] = {
            (name, phase): replay_of(recorded.recorder.record_of(self.files.graph(engine)))
            for name, kind in self.program.kinds.items()
            for phase, engine in kind.engines.items()
        }
        self.weights: dict[str, Tensor] = {
            name: _weight(self.files.weight(name), port)
            for call in self.program.calls
            for port, name in self._weights(call)
        }
        self.vocab_size = self.files.config.vocab_size
        ports = {name: port for call in self.program.calls for port, name in self._inputs(call)}
        self._caches = {name: port for name, port in ports.items() if name.startswith("latent_cache.")}
        first = next(iter(self._caches.values()))
        self.cache_layout = CacheLayout(len(self._caches), int(first.shape[3]), first.dtype)
        self._buffers: weakref.WeakKeyDictionary[LatentCache, dict[str, Tensor]] = weakref.WeakKeyDictionary()

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        """See `Session.step`; sizes must be within the engines' profiles."""
        batch, tokens = input_ids.shape
        limits = self.program.limits
        phase = self.phase or ("decode" if tokens <= 1 + limits.draft else "prefill")
        assert batch <= limits.slots
        assert tokens <= (1 + limits.draft if phase == "decode" else limits.chunk)
        values: dict[str, Tensor] = {
            "input_ids": torch.from_numpy(input_ids),
            "start": torch.from_numpy(start),
            "logit_rows": torch.from_numpy(logit_rows),
            "length": torch.tensor([int(start.max()) + tokens]),
            **{name: buffer[slots.start : slots.stop] for name, buffer in self._buffers_of(cache).items()},
        }
        self.seen = {}
        for call in self.program.calls:
            self._call(call, phase, values)
        self.keep(self.seen)
        return values["logits"].numpy()

    def altered(
        self, phase: Phase, rows: Mapping[Key, Row] | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> ReplayedEngine:
        """The same engine with other rows in its layers' networks of a phase, or other weights."""
        other = copy(self)
        if rows:
            layers = [(kind, phase) for kind in ("dense_layer", "moe_layer")]
            known = self.recorded.kinds["moe_layer"][0].rows
            other.replays = self.replays | {key: self.recorded.define(*key, {**known, **rows}) for key in layers}
        other.weights = self.weights | dict(weights or {})
        return other

    def logits(self, token_ids: Sequence[int], chunk: int | None = None) -> Logits:
        """Logits at every position of one sequence: float32 [S, vocab_size]."""
        size, ids = chunk or self.program.limits.chunk, np.asarray(token_ids, np.int64)
        cache = LatentCache(self.cache_layout, 1, self.program.limits.capacity)
        parts = [
            self.step(ids[None, begin : begin + size], np.array([begin]), cache, range(1), np.arange(len(part)))
            for begin, part in ((begin, ids[begin : begin + size]) for begin in range(0, len(ids), size))
        ]
        return np.concatenate(parts)

    def _call(self, call: Call, phase: Phase, values: dict[str, Tensor]) -> None:
        inner = self.inner.get(call.kind, ())
        inputs = {formal: values[name] for formal, name in call.inputs.items()}
        weights = {formal: self.weights[name] for formal, name in call.weights.items()}
        results = self.replays[call.kind, phase].run({**inputs, **weights}, inner)
        for formal, name in call.outputs.items():
            values[name] = results[formal]
        self.seen |= {f"{call.path}.{name}": results[name] for name in inner}
        if call.kind != "head":
            self.seen[call.path or "embed_tokens"] = values[next(iter(call.outputs.values()))]

    def _buffers_of(self, cache: LatentCache) -> dict[str, Tensor]:
        """As on a device: of the engine's capacity, whatever that of the cache is."""
        if cache not in self._buffers:
            rows = self.program.limits.capacity
            self._buffers[cache] = {
                name: torch.zeros(cache.slots, 1, rows, int(port.shape[3]), dtype=_CACHE_TYPES[port.dtype])
                for name, port in self._caches.items()
            }
        return self._buffers[cache]

    def _weights(self, call: Call) -> list[tuple[Port, str]]:
        return [(port, call.weights[port.name]) for port in self.program.kinds[call.kind].weights]

    def _inputs(self, call: Call) -> list[tuple[Port, str]]:
        return [(port, call.inputs[port.name]) for port in self.program.kinds[call.kind].inputs]


def _weight(array: Any, port: Port) -> Tensor:
    """As the engine gets it: the table's bytes, which an engine may take as integers of 8 bits."""
    tensor = torch_tensor(np.array(array))
    return tensor.view(torch.int8) if port.dtype == "I8" else tensor
