"""Bars over places in a row, of parts on top of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dsv3export.report.charts.frame import Frame
from dsv3export.report.charts.svg import drawing, element
from dsv3export.report.text import number

_GRID_LINES = 4
_GAP = 2.0
_WIDEST = 48.0


@dataclass(frozen=True)
class Part:
    """One part of every bar; `style` as in `lines.Line`, or ``bad``."""

    label: str
    style: str
    counts: Sequence[int]


def bar_chart(
    parts: Sequence[Part], places: Sequence[str], ticks: Sequence[str], x: str, y: str, *, label: str
) -> Markup:
    """A bar at each place.

    Args:
        parts: From the bottom up.
        places: What each place is called, in full.
        ticks: What stands below each place; may be empty.
        x, y, label: As of `line_chart`.
    """
    frame = Frame(height=240)
    totals = [sum(part.counts[i] for part in parts) for i in range(len(places))]
    top = _round_up(max(totals, default=0))
    step = (frame.x[1] - frame.x[0]) / max(len(places), 1)
    width = min(max(step - _GAP, 1.0), _WIDEST)
    lefts = [frame.x[0] + (i + 0.5) * step - width / 2 for i in range(len(places))]

    def height(count: int) -> float:
        return count / top * (frame.y[0] - frame.y[1])

    grid = [(frame.y[0] - height(count), number(count)) for count in _grid(top)]
    shown = [*frame.grid(grid), *frame.titles(x, y)]
    for i, left in enumerate(lefts):
        base = frame.y[0]
        for part in parts:
            if part.counts[i]:
                rise = height(part.counts[i])
                base -= rise
                shown.append(element("rect", x=left, y=base, width=width, height=rise, class_=f"bar {part.style}"))
        tip = "\n".join([places[i], *(f"{part.label}: {part.counts[i]:,}" for part in parts)])
        shown.append(element("rect", x=frame.x[0] + i * step, y=frame.top, width=step,
                             height=frame.y[0] - frame.top, class_="hit", data_tip=tip))  # fmt: skip
    shown += frame.axis([(left + width / 2, tick) for left, tick in zip(lefts, ticks, strict=True) if tick])
    return drawing(frame.width, frame.height, label, shown, "wide")


def _grid(top: int) -> list[int]:
    return [round(top * i / _GRID_LINES) for i in range(_GRID_LINES + 1)] if top > 1 else [0, 1]


def _round_up(count: int) -> int:
    """The next number that is 4, 8, 12, 20, 40 or 60 times a power of ten; 1 for none."""
    if count <= 1:
        return 1
    power: int = 10 ** max(math.floor(math.log10(count)) - 1, 0)
    return next(step * power for step in (4, 8, 12, 20, 40, 60, 80, 100) if step * power >= count)
