"""What a turn of the batch does: which slots decode together, and whose prompt goes on.

A turn decodes one token for every sequence whose prompt is done, and computes a chunk of a prompt, or of several if
they are short. So a long prompt holds the others up by a chunk at most, and prompts take turns, so that a short one
behind a long one is not held up until that has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

# A step over idle slots costs their rows, a further step all the weights once more: so it pays to bridge small gaps.
_BRIDGED = 3


def decode_ranges(slots: Sequence[int], barred: Collection[int] = ()) -> list[range]:
    """Ascending slot numbers as ranges of one step each; gaps of up to three idle slots are stepped over as well.

    Args:
        barred: Slots that no range may have in it.
    """
    runs: list[range] = []
    for slot in slots:
        gap = range(runs[-1].stop, slot) if runs else range(0)
        if runs and len(gap) <= _BRIDGED and not any(between in barred for between in gap):
            runs[-1] = range(runs[-1].start, slot + 1)
        else:
            runs.append(range(slot, slot + 1))
    return runs


def pipelined(runs: Sequence[range], depth: int) -> list[range]:
    """Runs as at least `depth` of them, where there are slots enough: so many stages work at the same time."""
    parts = list(runs)
    while len(parts) < depth and max(len(run) for run in parts) > 1:
        place = max(range(len(parts)), key=lambda i: len(parts[i]))
        middle = parts[place].start + len(parts[place]) // 2
        parts[place : place + 1] = [range(parts[place].start, middle), range(middle, parts[place].stop)]
    return parts


class PrefillTurns:
    """Slots whose prompt is not done yet, each in its turn."""

    def __init__(self) -> None:
        self._slots: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, slot: int) -> None:
        """A new prompt; it waits for those that came before."""
        self._slots.append(slot)

    def turn(self, next_chunk: Callable[[int], int], budget: int) -> list[int]:
        """Whose chunks are computed now: as many as fit the budget of tokens, one at least, none twice.

        They move to the end, so that every prompt gets on.
        """
        chosen: list[int] = []
        left = budget
        while self._slots and self._slots[0] not in chosen:
            left -= next_chunk(self._slots[0])
            if chosen and left < 0:
                break
            chosen.append(self._slots[0])
            self._slots.rotate(-1)
        return chosen

    def remove(self, slot: int) -> None:
        """The slot's prompt is done or given up; nothing happens if it is not waiting here."""
        if slot in self._slots:
            self._slots.remove(slot)
