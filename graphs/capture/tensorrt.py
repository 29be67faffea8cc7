"""A TensorRT engine, one stage at a time, with its inner values: on its GPU, or replayed on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.stages import Values
from dsv3export.dtypes import NUMPY
from dsv3export.engine.program import MTP_PROGRAM, PROGRAM, Phase, Program
from dsv3export.engine.program import Call as KindCall
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import RequestError
from dsv3export.graphs.capture.calls import FINAL_HIDDEN, ROUTER_BIAS, Call, Flow, given_inputs
from dsv3export.graphs.lower.tensorrt.kinds import TOKENS, LayerKind, layer_kinds
from dsv3export.graphs.lower.tensorrt.objects import Module
from dsv3export.graphs.trace import Part
from dsv3export.runtime.tensorrt.graphs import rounded_length
from dsv3export.runtime.tensorrt.signature import CACHE, LENGTH, ROWS
from dsv3export.runtime.tensorrt.values import Sizes, port_shape, shape_at

Array = NDArray[Any]
_PROGRAMS: Mapping[Part, str] = {"trunk": PROGRAM, "mtp": MTP_PROGRAM}
# What the executor calls the rows that attention reads from a cache, by whether they are kept as they are.
_CACHE_ROWS = {True: "self_attn.latent_append", False: "self_attn.latent_append.latent"}


@dataclass(frozen=True)
class TensorRTEngine:
    """An engine's programs, and the layer kinds that they call."""

    files: EngineFiles
    programs: Mapping[Part, Program]
    kinds: Mapping[Part, Mapping[str, LayerKind]]

    @classmethod
    def of(cls, files: EngineFiles, trt: Module) -> TensorRTEngine:
        """Raises EngineError."""
        programs = {
            part: Program.from_json(files.graph(name))
            for part, name in _PROGRAMS.items()
            if name in files.manifest.graphs
        }
        return cls(files, programs, {part: layer_kinds(files, each, part, trt) for part, each in programs.items()})


@dataclass(frozen=True)
class Results:
    """What a call has computed: outputs by the kind's names, and values within it by their names in the kind."""

    outputs: Mapping[str, Array]
    inner: Mapping[str, Array]


class OpenKinds(Protocol):
    """The layer kinds of some calls, with the calls' weights where they are computed."""

    def run(self, part: Part, call: KindCall, phase: Phase, sizes: Sizes, inputs: Mapping[str, Array]) -> Results:
        """One call. Caches are updated in place.

        Args:
            inputs: By the kind's names, in the ports' types and shapes.
        """
        ...


class Machine(Protocol):
    """What computes an engine's calls."""

    @property
    def label(self) -> str: ...

    def open(self, part: Part, calls: Sequence[KindCall]) -> AbstractContextManager[OpenKinds]: ...


@dataclass(frozen=True)
class _Program:
    """A stage: the calls of a program that make it up, and what they are to the flow between stages."""

    part: Part
    calls: tuple[KindCall, ...]
    flow: Call


class TensorRTStages:
    """A `StagedModel` of a TensorRT engine.

    A prompt goes through a stage as the runtime sends it through the engine: in chunks, each through the networks for
    prefill, or for decoding if it has as few tokens as a decode step may have.

    Args:
        engine: The engine.
        machine: Computes it.
        prompts: Token ids of each.
        chunk: Tokens of a chunk; None = as many as the engine takes.

    Raises RequestError for a prompt or a chunk that is too long for the engine.
    """

    def __init__(
        self, engine: TensorRTEngine, machine: Machine, prompts: Sequence[Sequence[int]], chunk: int | None = None
    ) -> None:
        limits = engine.programs["trunk"].limits
        where = f"engine {engine.files.path}"
        longest = max(len(ids) for ids in prompts)
        if longest > limits.capacity:
            raise RequestError(f"{where}: prompts", expected=f"at most {limits.capacity} tokens each", got=str(longest))
        if chunk is not None and chunk > limits.chunk:
            raise RequestError(f"{where}: --chunk", expected=f"at most {limits.chunk} tokens", got=str(chunk))
        self.config = engine.files.config
        self.label = f"{engine.files.path} ({machine.label}, {engine.files.manifest.recipe.precision})"
        self._engine, self._machine = engine, machine
        self._chunk = chunk or limits.chunk
        self._programs = {each.flow.stage: each for each in _stages(engine)}
        self._flow: Flow[Array] = Flow(
            [each.flow for each in self._programs.values()], [given_inputs(ids) for ids in prompts]
        )
        self._lengths = [len(ids) for ids in prompts]

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self._programs)

    @contextmanager
    def open(self, stage: str) -> Iterator[_OpenStage]:
        """See `StagedModel.open`."""
        program = self._programs[stage]
        with self._machine.open(program.part, program.calls) as opened:
            yield _OpenStage(self._engine, program, opened, self._flow, self._lengths, self._chunk)
        self._flow.forget(program.flow)
        self._engine.files.release_pages()


def _stages(engine: TensorRTEngine) -> Iterator[_Program]:
    """A call of the trunk each, and all calls of the MTP layer's program as one."""
    for call in engine.programs["trunk"].calls:
        flow = Call(call.path or call.kind, call.path, tuple(call.inputs.values()), tuple(call.outputs.values()))
        yield _Program("trunk", (call,), flow)
    if "mtp" in engine.programs:
        program = engine.programs["mtp"]
        path = program.calls[-1].path
        flow = Call(path, path, tuple(program.inputs), tuple(program.outputs), drafts=True)
        yield _Program("mtp", program.calls, flow)


class _OpenStage:
    """A `Stage`."""

    def __init__(
        self,
        engine: TensorRTEngine,
        program: _Program,
        opened: OpenKinds,
        flow: Flow[Array],
        lengths: Sequence[int],
        chunk: int,
    ) -> None:
        self._kinds, self._limits = engine.kinds[program.part], engine.programs[program.part].limits
        self._program, self._opened, self._flow = program, opened, flow
        self._lengths, self._chunk = lengths, chunk
        weights = [name for call in program.calls for name in call.weights.values()]
        bias = next((name for name in weights if name.endswith(ROUTER_BIAS)), None)
        self.router_bias: Array | None = None if bias is None else engine.files.weight(bias)
        self.output, self.handed_on = program.flow.output, program.flow.handed_on

    def run(self, prompt: int, hidden: NDArray[np.float32] | None = None) -> Values:
        given = self._flow.inputs(self._program.flow, prompt, hidden)
        caches = self._empty_caches()
        outputs, shown = _Chunks(), _Chunks()
        length = self._lengths[prompt]
        for begin in range(0, length, self._chunk):
            tokens = range(begin, min(length, begin + self._chunk))
            self._step(tokens, _part_of(given, tokens), caches, outputs, shown)
        joined = outputs.joined()
        if hidden is None:
            self._flow.keep(self._program.flow, prompt, joined)
        seen = {name: _plain(value) for name, value in shown.joined().items()} | self._cache_rows(caches, length)
        results = {self.output: joined[self._result]} if self._program.flow.path else {}
        if FINAL_HIDDEN in joined:
            results[FINAL_HIDDEN] = joined[FINAL_HIDDEN]
        return seen | {name: _plain(value) for name, value in results.items()}

    @property
    def _result(self) -> str:
        """The value that the stage's last call is there for."""
        return next(iter(self._program.calls[-1].outputs.values()))

    def _empty_caches(self) -> dict[str, Array]:
        """Of one slot, by the program's names."""
        ports = {
            name: port
            for call in self._program.calls
            for port in self._kinds[call.kind].known.inputs
            if (name := call.inputs[port.name]).startswith(CACHE)
        }
        return {name: np.zeros(port_shape(port, {"B": 1}), NUMPY[port.dtype]) for name, port in ports.items()}

    def _step(
        self, tokens: range, given: Mapping[str, Array], caches: Mapping[str, Array], outputs: _Chunks, shown: _Chunks
    ) -> None:
        """One chunk of a prompt through the stage's calls."""
        sizes = {"B": 1, "S": len(tokens), "R": len(tokens)}
        phase: Phase = "decode" if len(tokens) <= 1 + self._limits.draft else "prefill"
        values = {**given, **caches, LENGTH: np.array([rounded_length(tokens.stop, self._limits.capacity)])}
        for call in self._program.calls:
            kind = self._kinds[call.kind]
            inputs = {
                port.name: values[call.inputs[port.name]].astype(NUMPY[port.dtype], copy=False)
                for port in kind.known.inputs
            }
            results = self._opened.run(self._program.part, call, phase, sizes, inputs)
            for port in kind.known.outputs:
                if port.name not in kind.known.aliases:
                    values[call.outputs[port.name]] = results.outputs[port.name]
                    outputs.add(call.outputs[port.name], results.outputs[port.name], port.shape)
            self._show(call, kind, results, sizes, shown)

    def _show(self, call: KindCall, kind: LayerKind, results: Results, sizes: Sizes, shown: _Chunks) -> None:
        """Values of a call, by provenance. The embedding that the MTP layer calls is the trunk's, on other tokens."""
        if self._program.flow.drafts and not call.path:
            return
        prefix = f"{call.path}." if call.path else ""
        known = dict(results.inner)
        known |= {kind.outputs[port]: value for port, value in results.outputs.items()}
        for name, shape in kind.values.items():
            if name in known:
                shown.add(f"{prefix}{name}", known[name].reshape(shape_at(shape, sizes)), shape)

    def _cache_rows(self, caches: Mapping[str, Array], length: int) -> dict[str, Array]:
        """What the stage's cache holds in the end, float32 [1, S, Dc + Dr]."""
        prefix = f"{self._program.flow.path}."
        return {
            f"{prefix}{_CACHE_ROWS[cache.dtype == np.float32]}": _plain(cache[:, 0, :length])
            for cache in caches.values()
        }


class _Chunks:
    """Values that come a chunk of a prompt's tokens at a time."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Array]] = {}
        self._axes: dict[str, int] = {}

    def add(self, name: str, value: Array, shape: Sequence[int | str]) -> None:
        """Args: shape: The value's, of sizes and names of run-time sizes."""
        self._pieces.setdefault(name, []).append(value)
        self._axes[name] = _token_axis(shape)

    def joined(self) -> dict[str, Array]:
        return {name: np.concatenate(parts, self._axes[name]) for name, parts in self._pieces.items()}


def _token_axis(shape: Sequence[int | str]) -> int:
    return next(axis for axis, size in enumerate(shape) if size in TOKENS)


def _part_of(given: Mapping[str, Array], tokens: range) -> dict[str, Array]:
    """A stage's inputs, for a chunk of the prompt: [1, S, ...] each, but where the chunk starts and what logits."""
    part = {name: value[:, tokens.start : tokens.stop] for name, value in given.items() if value.ndim > 1}
    if "start" in given:
        part["start"] = given["start"] + tokens.start
    if ROWS in given:
        part[ROWS] = np.arange(len(tokens))
    return part


def _plain(value: Array) -> Array:
    """In a type in which values are compared."""
    return value.astype(np.int64 if np.issubdtype(value.dtype, np.integer) else np.float32)
