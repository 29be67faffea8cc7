"""Lists of numbered names made short: 256 experts' tensors are one line of a weight table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_NUMBERS = re.compile(r"(?<![^.])(\d+)(?![^.])")


def shortened(names: Iterable[str]) -> tuple[str, ...]:
    """Runs of names that count up in one place as one: ``("e.0.w", "e.1.w", "e.2.w")`` -> ``("e.{0..2}.w",)``.

    The place is a part between dots; the notation is that of shells, whose ``echo`` spells the names out again.
    """
    return tuple(_text(run) for run in _runs(names))


def _runs(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(first, last) of each run."""
    first = last = None
    place = None  # where the names of this run differ
    for name in names:
        if first is None or last is None:
            first = last = name
            continue
        step = _counted_place(last, name)
        if step is not None and place in (None, step):
            last, place = name, step
            continue
        yield first, last
        first = last = name
        place = None
    if first is not None and last is not None:
        yield first, last


def _counted_place(name: str, following: str) -> int | None:
    """Which of the names' numbers is one higher in `following`, if all else is the same."""
    before, after = _NUMBERS.split(name), _NUMBERS.split(following)
    different = [i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if len(before) != len(after) or len(different) != 1:
        return None
    place = different[0]
    counts = place % 2 == 1 and after[place] == str(int(before[place]) + 1)
    return place if counts and before[place] == str(int(before[place])) else None


def _text(run: tuple[str, str]) -> str:
    first, last = run
    if first == last:
        return first
    ends = zip(_NUMBERS.split(first), _NUMBERS.split(last), strict=True)
    return "".join(a if a == b else f"{{{a}..{b}}}" for a, b in ends)
