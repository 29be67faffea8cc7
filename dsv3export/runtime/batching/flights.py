"""Decode steps that are under way over the stages of a pipeline, each of another group of slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from dsv3export.runtime.batching.schedule import decode_ranges, pipelined

if TYPE_CHECKING:
    from dsv3export.runtime.session import Logits

T = TypeVar("T")


@dataclass(frozen=True)
class Flight(Generic[T]):
    """A step that was begun: who of its slots decodes, and what waits for its logits, a row for each of them."""

    sequences: Mapping[int, T]
    finish: Callable[[], Logits]


class Flights(Generic[T]):
    """Steps under way, the oldest first; their slots take no part in another one.

    Args:
        depth: How many keep all stages busy.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._flights: deque[Flight[T]] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, flight: Flight[T]) -> None:
        """A step that has just been begun."""
        self._flights.append(flight)

    def land(self) -> Flight[T]:
        """The oldest, which is to be finished now."""
        return self._flights.popleft()

    def free_runs(self, decoding: Iterable[int]) -> list[range]:
        """The slots that decode and are not under way, as the steps that may be begun now.

        A step of its own for each stage that has none yet; one at least, if there is anything to be done.
        """
        away = {slot for flight in self._flights for slot in flight.sequences}
        runs = decode_ranges(sorted(set(decoding) - away), away)
        return pipelined(runs, self._depth - len(self._flights)) if runs else []
