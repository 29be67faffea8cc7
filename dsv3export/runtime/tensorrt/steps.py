"""Runs a program step by step, over a latent cache that it updates in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.dtypes import NUMPY, itemsize
from dsv3export.engine.program import PHASES, Call, Phase
from dsv3export.errors import InternalError
from dsv3export.runtime.device import DeviceBuffer, PinnedBuffer
from dsv3export.runtime.tensorrt.caches import DeviceCaches
from dsv3export.runtime.tensorrt.graphs import Contexts, StepGraphs, rounded_length
from dsv3export.runtime.tensorrt.opened import OpenedProgram
from dsv3export.runtime.tensorrt.signature import IDS, LENGTH, LOGITS, ROWS, START
from dsv3export.runtime.tensorrt.values import port_bytes, port_shape
from dsv3export.runtime.tensorrt_module import without_collector

if TYPE_CHECKING:
    from dsv3export.runtime.latent_cache import LatentCache
    from dsv3export.runtime.session import Hidden, IntArray, Logits

# What a step is given of each token, by name: [B, S, ..].
Tokens = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Part:
    """A part of a step that the engines' profiles reach to: some slots, some tokens of each."""

    slots: range
    tokens: range
    phase: Phase

    @property
    def place(self) -> tuple[slice, slice]:
        """Its place in what a step is given of each token."""
        return slice(self.slots.start, self.slots.stop), slice(self.tokens.start, self.tokens.stop)


class StepProgram:
    """A program with its weights on the device.

    A `LatentCache` has buffers there, made when it is first used. A step moves what it is given of each token there,
    and logits back. Steps larger than the engines' profiles are cut. Decode steps that come back are captured as CUDA
    graphs.

    Args:
        weights: Name -> address, of all weights that its calls take.
        scratch: Memory for TensorRT, of `opened.scratch_bytes` at least.

    Attributes:
        graphs: The captured steps, or why there are none.

    Raises ResourceError where memory cannot be had.
    """

    def __init__(self, opened: OpenedProgram, weights: Mapping[str, int], scratch: DeviceBuffer) -> None:
        self._opened, self._weights = opened, weights
        self._signature, self._limits = opened.signature, opened.program.limits
        self._device, self._stream = opened.place.device, opened.place.stream
        engines = opened.engines
        self._values = self._device.allocate(opened.values.nbytes)
        self._length = np.zeros(1, np.int64)
        self._addresses = {name: self._values.address + offset for name, offset in opened.values.offsets.items()}
        self._addresses[LENGTH] = self._length.ctypes.data
        self._staging: dict[str, PinnedBuffer] = {}
        self._common = {phase: engines.contexts(phase, scratch) for phase in PHASES}
        self.graphs = StepGraphs(self._stream, self._common["decode"], lambda: engines.contexts("decode", scratch))
        forget = self.graphs.forget
        self._caches = DeviceCaches(self._signature, opened.needs, self._device, self._stream, opened.where, forget)

    @without_collector()
    def run(
        self, tokens: Tokens, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray, hidden: bool
    ) -> tuple[Logits, Hidden]:
        """A step of S tokens of B sequences; see `Session.step`.

        Args:
            tokens: What the program takes of each token: [B, S, ..].
            hidden: Whether to give the hidden states as well.

        Returns:
            Logits of those rows; hidden states, float32 [B, S, D], or of no token where they are not asked for.

        Raises BackendError when TensorRT fails or the device is lost.
        """
        batch, length = tokens[IDS].shape
        self._check(batch, length, start, cache, slots)
        self._device.make_current()
        width = self._width(self._signature.hidden)
        logits = np.empty((len(logit_rows), self._signature.vocab_size), np.float32)
        states = np.empty((batch, length if hidden else 0, width), np.float32)
        slot_of, token_of = np.divmod(logit_rows, length)
        for part in self._parts(batch, length):
            s, t = part.slots, part.tokens
            inside = (slot_of >= s.start) & (slot_of < s.stop) & (token_of >= t.start) & (token_of < t.stop)
            wanted = np.flatnonzero(inside)
            rows = (slot_of[wanted] - s.start) * len(t) + token_of[wanted] - t.start
            given = {name: array[part.place] for name, array in tokens.items()} | {
                START: start[s.start : s.stop] + t.start
            }
            here = range(slots.start + s.start, slots.start + s.stop)
            try:
                logits[wanted] = self._run(part.phase, given, cache, here, rows, hidden)
                if hidden:
                    states[part.place] = self._fetched(self._signature.hidden, (len(s), len(t), width))
            except BaseException:
                self._stream.drain()
                raise
        return logits, states

    def _check(self, batch: int, length: int, start: IntArray, cache: LatentCache, slots: range) -> None:
        if batch != len(slots) or start.shape != (batch,) or int(start.max()) + length > cache.capacity:
            raise InternalError(f"a step of {(batch, length)} tokens at {start.tolist()} does not fit slots {slots}")
        if cache.capacity > self._limits.capacity:
            raise InternalError(f"a cache of {cache.capacity} rows; the engine was built for {self._limits.capacity}")

    def _parts(self, batch: int, length: int) -> Iterator[_Part]:
        """In order: all tokens of a slot before a chunk must be in the cache when it runs."""
        limits = self._limits
        for slot in range(0, batch, limits.slots):
            for token in range(0, length, limits.chunk):
                tokens = range(token, min(length, token + limits.chunk))
                phase: Phase = "decode" if len(tokens) <= 1 + limits.draft else "prefill"
                yield _Part(range(slot, min(batch, slot + limits.slots)), tokens, phase)

    def _run(
        self, phase: Phase, given: Tokens, cache: LatentCache, slots: range, rows: IntArray, hidden: bool
    ) -> Logits:
        """One part: logits float32 [len(rows), vocab]; the hidden states are in their staging buffer."""
        ids, start = given[IDS], given[START]
        sizes = {"B": ids.shape[0], "S": ids.shape[1]}
        self._length[0] = rounded_length(int(start.max()) + ids.shape[1], self._limits.capacity)
        addresses = self._addresses | self._caches.addresses(cache, slots)
        most = self._opened.largest["R"]
        first, *others = [rows[begin : begin + most] for begin in range(0, max(1, len(rows)), most)]
        # Hidden states come from the calls that make logits, and those want a row.
        some = first if len(first) or not self._needs_tail(hidden) else np.zeros(1, np.int64)
        for name, numbers in (*given.items(), (ROWS, some)):
            self._stage(name, numbers)

        def enqueue(contexts: Contexts) -> None:
            for name, numbers in given.items():
                self._copy_in(name, numbers.size)
            self._calls(contexts, self._signature.body, sizes, addresses)
            if len(some):
                self._tail(contexts, len(some), sizes, addresses)
            if hidden:
                self._copy_out(self._signature.hidden, sizes)

        if phase == "decode" and not others:
            key = (id(cache), slots, ids.shape, len(some), hidden, int(self._length[0]))
            self.graphs.run(key, enqueue)
        else:
            enqueue(self._common[phase])
        results = [self._logits(len(first))]
        for portion in others:
            self._stage(ROWS, portion)
            self._tail(self._common[phase], len(portion), sizes, addresses)
            results.append(self._logits(len(portion)))
        return np.concatenate(results)

    def _needs_tail(self, hidden: bool) -> bool:
        """Whether the calls after the body do more than logits: give hidden states that are wanted, or fill a cache."""
        return hidden or not self._signature.body_fills_caches

    def _tail(self, contexts: Contexts, rows: int, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> None:
        """The calls that work on the rows that logits are wanted of, and the copy of these."""
        self._copy_in(ROWS, rows)
        with_rows = {**sizes, "R": rows}
        self._calls(contexts, self._signature.tail, with_rows, addresses)
        self._copy_out(LOGITS, with_rows)

    def _calls(
        self, contexts: Contexts, calls: tuple[Call, ...], sizes: Mapping[str, int], addresses: Mapping[str, int]
    ) -> None:
        for call in calls:
            bound = {port: addresses[value] for port, value in (*call.inputs.items(), *call.outputs.items())}
            bound |= {port: self._weights[name] for port, name in call.weights.items()}
            contexts[call.kind].enqueue(sizes, bound, self._stream.address)

    def _staged(self, name: str) -> PinnedBuffer:
        """Page-locked memory for a value that comes or goes, made when it is first used."""
        if name not in self._staging:
            self._staging[name] = self._device.pinned(port_bytes(self._signature.ports[name], self._opened.largest))
        return self._staging[name]

    def _stage(self, name: str, numbers: NDArray[Any]) -> None:
        """Into the staging buffer, in the engines' type; nothing is being copied out of it any more."""
        self._staged(name).view(NUMPY[self._signature.ports[name].dtype], numbers.size)[:] = numbers.reshape(-1)

    def _copy_in(self, name: str, count: int) -> None:
        nbytes = count * itemsize(self._signature.ports[name].dtype)
        self._stream.copy_in(self._addresses[name], self._staged(name), nbytes)

    def _copy_out(self, name: str, sizes: Mapping[str, int]) -> None:
        nbytes = port_bytes(self._signature.ports[name], sizes)
        self._stream.copy_out(self._staged(name), self._addresses[name], nbytes)

    def _logits(self, rows: int) -> Logits:
        """Waits for everything, and copies the logits that have arrived."""
        self._stream.synchronise()
        return self._fetched(LOGITS, (rows, self._signature.vocab_size))

    def _fetched(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """What has arrived of a value, as float32."""
        flat = self._staged(name).view(NUMPY[self._signature.ports[name].dtype], int(np.prod(shape)))
        return flat.reshape(shape).astype(np.float32)

    def _width(self, name: str) -> int:
        return port_shape(self._signature.ports[name], self._opened.largest)[-1]
