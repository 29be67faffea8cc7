"""Runs an engine's program with TensorRT or TensorRT-RTX. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import finalize

import numpy as np

from dsv3export.dtypes import NUMPY, itemsize
from dsv3export.engine.program import PHASES, PROGRAM, Call, Phase, Program
from dsv3export.errors import InternalError
from dsv3export.model_size import count_parameters
from dsv3export.runtime.device import Device
from dsv3export.runtime.tensorrt.caches import DeviceCaches
from dsv3export.runtime.tensorrt.engines import ProgramEngines, flavour_of
from dsv3export.runtime.tensorrt.graphs import Contexts, StepGraphs, rounded_length
from dsv3export.runtime.tensorrt.kernels import KernelCache
from dsv3export.runtime.tensorrt.memory import MemoryNeeds, check_memory
from dsv3export.runtime.tensorrt.signature import LENGTH, LOGITS, ROWS, read_signature
from dsv3export.runtime.tensorrt.values import plan_values, port_bytes
from dsv3export.runtime.tensorrt.weights import DeviceWeights, wanted_weights, weight_bytes
from dsv3export.runtime.tensorrt_module import load_tensorrt, without_collector

if TYPE_CHECKING:
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.progress import Progress
    from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
    from dsv3export.runtime.session import IntArray, Logits

# Logits of more tokens are computed in portions: of DeepSeek-V3's vocabulary, 64 rows take 33 MB.
_LEAST_ROWS = 64


@dataclass(frozen=True)
class _Part:
    """A part of a step that the engines' profiles reach to: some slots, some tokens of each."""

    slots: range
    tokens: range
    phase: Phase


class TensorRTSession:
    """A `Session` on an NVIDIA GPU.

    Weights lie on the device, each once. A `LatentCache` has buffers there, made when it is first used. A step moves
    token ids there and logits back. Steps larger than the engines' profiles are cut. Decode steps that come back are
    captured as CUDA graphs.

    Args:
        files: The engine; `files` must have passed its checks.
        device: Where to compute; None takes the first GPU.
        trt: The flavour's module; None finds it.
        kernels: Where TensorRT-RTX keeps compiled kernels; None takes the user's cache folder.
        progress: Told of the bytes of weights.

    Attributes:
        graphs: The captured steps, or why there are none.

    Raises:
        BackendError: TensorRT, a driver or a device is missing, or does not run this engine.
        EngineError: The engine does not hold what its program says.
        ResourceError: It does not fit the device's memory; said before weights are loaded.
    """

    cache_on_host = False

    def __init__(
        self,
        files: EngineFiles,
        device: Device | None = None,
        trt: Any = None,
        kernels: KernelCache | None = None,
        progress: Progress | None = None,
    ) -> None:
        where = f"engine {files.path}"
        self._program = program = Program.from_json(files.graph(PROGRAM))
        self._signature = read_signature(program, f"{where}: program")
        entries = wanted_weights(files, program)
        module = trt or load_tensorrt(flavour_of(program))
        self._device = device or Device()
        kernels = kernels or KernelCache.of(files, self._device)
        engines = ProgramEngines(files, program, module, self._device, kernels)
        limits = program.limits
        self._rows = max(limits.slots * (1 + limits.draft), min(_LEAST_ROWS, limits.slots * limits.chunk))
        largest = {"B": limits.slots, "S": limits.chunk, "R": self._rows}
        values = plan_values(program, largest)
        slot = len(self._signature.caches) * self._signature.slot_bytes
        needs = MemoryNeeds(weight_bytes(entries), engines.scratch_bytes + values.nbytes, slot, limits.capacity)
        check_memory(where, needs, self._device, count_parameters(files.config).total)
        self._stream = self._device.stream()
        self._weights = DeviceWeights(files, entries, self._device, self._stream, progress)
        scratch = self._device.allocate(engines.scratch_bytes)
        self._values = self._device.allocate(values.nbytes)
        self._length = np.zeros(1, np.int64)
        self._addresses = {name: self._values.address + offset for name, offset in values.offsets.items()}
        self._addresses[LENGTH] = self._length.ctypes.data
        self._staging = {
            name: self._device.pinned(port_bytes(self._signature.ports[name], largest))
            for name in ("input_ids", "start", ROWS, LOGITS)
        }
        self._common = {phase: engines.contexts(phase, scratch) for phase in PHASES}
        self.graphs = StepGraphs(self._stream, self._common["decode"], lambda: engines.contexts("decode", scratch))
        forget = self.graphs.forget
        self._caches = DeviceCaches(self._signature, needs, self._device, self._stream, where, forget)
        finalize(self, kernels.save)

    @property
    def cache_layout(self) -> CacheLayout:
        return self._signature.layout

    @property
    def vocab_size(self) -> int:
        return self._signature.vocab_size

    @property
    def capacity(self) -> int:
        """The most tokens of a sequence that the engine was built for."""
        return self._program.limits.capacity

    @without_collector()
    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        """See `Session.step`. Raises BackendError when TensorRT fails or the device is lost."""
        batch, length = input_ids.shape
        if batch != len(slots) or start.shape != (batch,) or int(start.max()) + length > cache.capacity:
            raise InternalError(f"a step of {input_ids.shape} tokens at {start.tolist()} does not fit slots {slots}")
        if cache.capacity > self.capacity:
            raise InternalError(f"a cache of {cache.capacity} rows; the engine was built for {self.capacity}")
        self._device.make_current()
        logits = np.empty((len(logit_rows), self.vocab_size), np.float32)
        slot_of, token_of = np.divmod(logit_rows, length)
        for part in self._parts(batch, length):
            s, t = part.slots, part.tokens
            inside = (slot_of >= s.start) & (slot_of < s.stop) & (token_of >= t.start) & (token_of < t.stop)
            wanted = np.flatnonzero(inside)
            rows = (slot_of[wanted] - s.start) * len(t) + token_of[wanted] - t.start
            ids = input_ids[s.start : s.stop, t.start : t.stop]
            begin = start[s.start : s.stop] + t.start
            here = range(slots.start + s.start, slots.start + s.stop)
            try:
                logits[wanted] = self._run(part.phase, ids, begin, cache, here, rows)
            except BaseException:
                self._stream.drain()
                raise
        return logits

    def _parts(self, batch: int, length: int) -> Iterator[_Part]:
        """In order: all tokens of a slot before a chunk must be in the cache when it runs."""
        limits = self._program.limits
        for slot in range(0, batch, limits.slots):
            for token in range(0, length, limits.chunk):
                tokens = range(token, min(length, token + limits.chunk))
                phase: Phase = "decode" if len(tokens) <= 1 + limits.draft else "prefill"
                yield _Part(range(slot, min(batch, slot + limits.slots)), tokens, phase)

    def _run(
        self, phase: Phase, ids: IntArray, start: IntArray, cache: LatentCache, slots: range, rows: IntArray
    ) -> Logits:
        """One part: logits float32 [len(rows), vocab]."""
        sizes = {"B": ids.shape[0], "S": ids.shape[1]}
        self._length[0] = rounded_length(int(start.max()) + ids.shape[1], self.capacity)
        addresses = self._addresses | self._caches.addresses(cache, slots)
        first, *others = [rows[begin : begin + self._rows] for begin in range(0, max(1, len(rows)), self._rows)]
        for name, numbers in (("input_ids", ids), ("start", start), (ROWS, first)):
            self._stage(name, numbers)

        def enqueue(contexts: Contexts) -> None:
            self._copy_in("input_ids", ids.size)
            self._copy_in("start", len(start))
            self._calls(contexts, self._signature.body, sizes, addresses)
            if len(first):
                self._head(contexts, len(first), sizes, addresses)

        if phase == "decode" and not others:
            self.graphs.run((id(cache), slots, ids.shape, len(first), int(self._length[0])), enqueue)
        else:
            enqueue(self._common[phase])
        results = [self._fetched(len(first))]
        for portion in others:
            self._stage(ROWS, portion)
            self._head(self._common[phase], len(portion), sizes, addresses)
            results.append(self._fetched(len(portion)))
        return np.concatenate(results)

    def _head(self, contexts: Contexts, rows: int, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> None:
        """The calls that work on the rows that logits are wanted of, and the copy of these."""
        self._copy_in(ROWS, rows)
        self._calls(contexts, self._signature.tail, {**sizes, "R": rows}, addresses)
        self._stream.copy_out(self._staging[LOGITS], self._addresses[LOGITS], rows * self.vocab_size * 4)

    def _calls(
        self, contexts: Contexts, calls: tuple[Call, ...], sizes: Mapping[str, int], addresses: Mapping[str, int]
    ) -> None:
        for call in calls:
            bound = {port: addresses[value] for port, value in (*call.inputs.items(), *call.outputs.items())}
            bound |= {port: self._weights.addresses[name] for port, name in call.weights.items()}
            contexts[call.kind].enqueue(sizes, bound, self._stream.address)

    def _stage(self, name: str, numbers: IntArray) -> None:
        """Into the staging buffer, in the engines' type; nothing is being copied out of it any more."""
        self._staging[name].view(NUMPY[self._signature.ports[name].dtype], numbers.size)[:] = numbers.reshape(-1)

    def _copy_in(self, name: str, count: int) -> None:
        nbytes = count * itemsize(self._signature.ports[name].dtype)
        self._stream.copy_in(self._addresses[name], self._staging[name], nbytes)

    def _fetched(self, rows: int) -> Logits:
        """Waits for everything, and copies the logits that have arrived."""
        self._stream.synchronise()
        flat = self._staging[LOGITS].view(np.dtype(np.float32), rows * self.vocab_size)
        return flat.reshape(rows, self.vocab_size).copy()
