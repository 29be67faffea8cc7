"""The main graph as a sequence of calls, and what flows between them for each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from dsv3export.errors import InternalError
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache

T = TypeVar("T")
HIDDEN = ".hidden"


@dataclass(frozen=True)
class Call:
    """A node of the main graph. `inputs` are those that are no weights, by their names in the main graph."""

    stage: str
    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def hidden(self) -> str:
        """The input that the stage before has computed."""
        found = [name for name in self.inputs if name.endswith(HIDDEN)]
        if len(found) != 1:
            raise InternalError(f"{self.stage} takes {len(found)} hidden states")
        return found[0]


class Flow(Generic[T]):
    """Each prompt's values that a later call needs.

    Args:
        given: A prompt's run-time inputs by name, for each prompt.
    """

    def __init__(self, calls: Sequence[Call], given: Sequence[Mapping[str, T]]) -> None:
        self._last_use = {name: place for place, call in enumerate(calls) for name in call.inputs}
        self._places = {call.stage: place for place, call in enumerate(calls)}
        self._values = [dict(values) for values in given]

    def inputs(self, call: Call, prompt: int, hidden: T | None) -> dict[str, T]:
        """What a call takes, with `hidden` in place of what was computed if it is given."""
        taken = {name: self._values[prompt][name] for name in call.inputs if name in self._values[prompt]}
        return taken if hidden is None else taken | {call.hidden: hidden}

    def needed(self, call: Call) -> list[str]:
        """Those of a call's results that a later call takes."""
        return [name for name in call.outputs if name in self._last_use]

    def keep(self, call: Call, prompt: int, outputs: Mapping[str, T]) -> None:
        """A call's results, for later calls."""
        self._values[prompt].update({name: value for name, value in outputs.items() if name in self._last_use})

    def forget(self, call: Call) -> None:
        """Let go of what no later call needs."""
        for values in self._values:
            for name in [name for name in values if self._last_use.get(name, -1) <= self._places[call.stage]]:
                del values[name]


def empty_caches(layout: CacheLayout, call: Call, length: int) -> dict[str, NDArray[Any]]:
    """Those that a call takes, of one slot with room for `length` tokens."""
    cache = LatentCache(layout, 1, length)
    return {name: array for name, array in cache.inputs(range(1)) if name in call.inputs}
