"""CUDA graphs of decode steps: captured when a step comes back, launched from then on.

A graph holds the addresses and sizes of the step that it was captured from, the number of cache rows among them. So
this number is rounded up (`rounded_length`). TensorRT wants execution contexts for each graph that are never used
otherwise, and one ordinary run at the same sizes before the capture. So a kind of step is run with the common contexts,
then with contexts of its own, and is captured when it comes for the third time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dsv3export.errors import BackendError
from dsv3export.runtime.cuda_driver import DeviceLostError
from dsv3export.runtime.device import Graph, Stream
from dsv3export.runtime.tensorrt.engines import KindContext

Contexts = Mapping[str, KindContext]
# Of a kind of step: the number of the cache, and all else that is part of a graph.
Key = tuple[Any, ...]
# Puts a step into the stream with these contexts.
Enqueue = Callable[[Contexts], None]
_MOST = 16
_LEAST_STEP = 64


def rounded_length(length: int, capacity: int) -> int:
    """Cache rows for a step that needs `length`: at most an eighth more, in few different numbers."""
    step = max(_LEAST_STEP, 1 << max(0, length.bit_length() - 4))
    return min(capacity, -(-length // step) * step)


@dataclass
class _Known:
    """A kind of step that was seen: its own contexts once it came back, its graph once it was captured."""

    contexts: Contexts | None = None
    graph: Graph | None = None


class StepGraphs:
    """The graphs of a session, the most recently used ones.

    Args:
        common: Contexts for steps that have none of their own.
        make: Makes contexts of their own.

    Attributes:
        why_not: Why steps are not captured; empty as long as they are.
        captured: How many were.
    """

    def __init__(self, stream: Stream, common: Contexts, make: Callable[[], Contexts]) -> None:
        self._stream, self._common, self._make = stream, common, make
        self._known: OrderedDict[Key, _Known] = OrderedDict()
        self.why_not, self.captured = "", 0

    def run(self, key: Key, enqueue: Enqueue) -> None:
        """Puts a step into the stream.

        Args:
            key: Equal for steps that do the same at the same addresses; begins with the number of the cache.
            enqueue: Does it by hand.
        """
        known = self._known.get(key)
        if self.why_not or known is None:
            self._note(key)
            enqueue(self._common)
        elif known.graph is not None:
            self._known.move_to_end(key)
            self._stream.launch(known.graph)
        elif known.contexts is None:
            known.contexts = self._make()
            enqueue(known.contexts)
        else:
            self._capture(known, known.contexts, enqueue)

    def forget(self, cache: int) -> None:
        """Drops the graphs of a cache, before its memory is given back."""
        for key in [key for key in self._known if key[0] == cache]:
            del self._known[key]

    def _note(self, key: Key) -> None:
        if not self.why_not:
            self._known[key] = _Known()
            while len(self._known) > _MOST:
                self._known.popitem(last=False)

    def _capture(self, known: _Known, contexts: Contexts, enqueue: Enqueue) -> None:
        refusing = [name for name, each in contexts.items() if not each.can_be_captured(self._stream.address)]
        if refusing:
            self._give_up(f"TensorRT cannot capture {refusing[0]}")
        else:
            try:
                known.graph = self._stream.captured(lambda: enqueue(contexts))
            except DeviceLostError:
                raise
            except BackendError as error:
                self._give_up(str(error))
        if known.graph is None:
            enqueue(self._common)
        else:
            self.captured += 1
            self._stream.launch(known.graph)

    def _give_up(self, reason: str) -> None:
        self.why_not = reason
        self._known.clear()
