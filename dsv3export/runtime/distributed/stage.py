"""A rank's part of the model: runs its segments and exchanges values between them, one command at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dsv3export.dtypes import NUMPY
from dsv3export.engine.segments import AllReduce, Gather, Recv, Run, SegmentPart, Send
from dsv3export.errors import InternalError
from dsv3export.runtime.distributed.buffers import BufferPool
from dsv3export.runtime.distributed.segment import Segment
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from dsv3export.runtime.onnxruntime_caches import cache_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dsv3export.engine.parallel import Layout
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.distributed.communicator import Communicator, Ranks
    from dsv3export.runtime.onnxruntime_device import Device

PartName = Literal["trunk", "mtp"]
Values = dict[str, "NDArray[Any]"]
_NAMES = {dtype: name for name, dtype in NUMPY.items()}


class Stage:
    """A part, the trunk's or the MTP layer's, of what one rank computes.

    Args:
        files: The rank's engine.
        part: Its steps.
        communicator: To the other ranks.
        layout: How they lie.
        pool: Memory for values; parts may share it.
        threads, device: See `open_graph`.
        first_layer: The number of the part's first cache.

    Attributes:
        cache_layout: Of the cache that `run` wants: of this rank's layers.
        seconds: Time spent in ONNX Runtime.

    Raises BackendError and EngineError as `Segment`.
    """

    def __init__(
        self, files: EngineFiles, part: SegmentPart, communicator: Communicator, layout: Layout, pool: BufferPool,
        threads: int | None, device: Device, first_layer: int = 0,
    ) -> None:  # fmt: skip
        self._part, self._communicator, self._layout, self._pool = part, communicator, layout, pool
        self._hidden_size, self._first_layer = files.config.hidden_size, first_layer
        runs = [step for step in part.steps if isinstance(step, Run)]
        self._segments = {step.segment: Segment(files, step, threads, device) for step in runs}
        self._last_use = _last_use(part)
        inputs = {name: value for segment in self._segments.values() for name, value in segment.caches.items()}
        where = f"engine {files.path}"
        self.cache_layout: CacheLayout = cache_layout(inputs, first_layer, where)
        self._widths: dict[str, list[int]] = {}
        self.seconds = 0.0

    def run(self, inputs: Mapping[str, NDArray[Any]], cache: LatentCache, slots: range) -> Values:
        """The values that are left at the end: the results, of this rank's share of them.

        Args:
            inputs: ``input_ids`` [B, S], ``start`` [B] and ``logit_rows`` [R]; of the MTP layer also ``final_hidden``.
            cache: Of `cache_layout`; the rows of `slots` are updated in place.

        They lie in the pool's memory: who has read them gives them back with `release`.
        """
        caches = dict(cache.inputs(slots, self._first_layer))
        values: Values = dict(inputs)
        for place, step in enumerate(self._part.steps):
            if isinstance(step, Run):
                started = time.perf_counter()
                with self._communicator.computing():
                    values |= self._segments[step.segment].run(values, caches, cache, slots, self._pool)
                self.seconds += time.perf_counter() - started
            else:
                self._exchange(step, values)
            for name in [name for name in values if self._last_use.get(name, -1) == place]:
                if name not in inputs:
                    self._pool.give(values.pop(name))
        return {name: value for name, value in values.items() if name not in inputs}

    def release(self, results: Values) -> None:
        """Takes back what `run` returned."""
        for value in results.values():
            self._pool.give(value)

    def _exchange(self, step: AllReduce | Gather | Send | Recv, values: Values) -> None:
        talk, rank = self._communicator, self._communicator.rank
        if isinstance(step, AllReduce):
            talk.all_reduce(values[step.value], self._layout.group(rank, step.group))
        elif isinstance(step, Send):
            talk.send(values[step.value], _there(self._layout.next(rank)))
        elif isinstance(step, Recv):
            shape = (*values["input_ids"].shape, self._hidden_size)
            values[step.value] = self._pool.take(shape, "F32")
            talk.receive(values[step.value], _there(self._layout.previous(rank)))
        else:
            self._gather(step, values)

    def _gather(self, step: Gather, values: Values) -> None:
        """The whole value at the group's first rank, nothing elsewhere: parts lie side by side on the last axis."""
        group, part = self._layout.group(self._communicator.rank, step.group), values.pop(step.value)
        if len(group) == 1:
            values[step.value] = part
            return
        if self._communicator.rank != group[0]:
            self._tell_width(step, part, group)
            self._communicator.gather(part, None, group)
        else:
            widths = self._learn_widths(step, part, group)
            parts = [self._pool.take((*part.shape[:-1], width), _NAMES[part.dtype]) for width in widths]
            self._communicator.gather(part, parts, group)
            whole = self._pool.take((*part.shape[:-1], sum(widths)), _NAMES[part.dtype])
            values[step.value] = np.concatenate(parts, axis=-1, out=whole)
            for each in parts:
                self._pool.give(each)
        self._pool.give(part)

    def _tell_width(self, step: Gather, part: NDArray[Any], group: Ranks) -> None:
        """Says once how wide this rank's part is."""
        if step.value not in self._widths:
            self._widths[step.value] = [part.shape[-1]]
            self._communicator.send(np.array([part.shape[-1]], np.int64), group[0], "control")

    def _learn_widths(self, step: Gather, part: NDArray[Any], group: Ranks) -> list[int]:
        """How wide all parts are: a vocabulary may not divide."""
        if step.value not in self._widths:
            width = np.zeros(1, np.int64)
            self._widths[step.value] = [part.shape[-1]]
            for rank in group[1:]:
                self._communicator.receive(width, rank, "control")
                self._widths[step.value].append(int(width[0]))
        return self._widths[step.value]


def _last_use(part: SegmentPart) -> dict[str, int]:
    """By value, the place of the last step that reads or makes it; not of results."""
    places: dict[str, int] = {}
    for place, step in enumerate(part.steps):
        names = (*step.inputs, *step.outputs) if isinstance(step, Run) else (step.value,)
        places.update(dict.fromkeys(names, place))
    return {name: place for name, place in places.items() if name not in part.outputs}


def _there(rank: int | None) -> int:
    """A neighbour that the program speaks of."""
    if rank is None:
        raise InternalError("a program talks to a stage that is not there")
    return rank
