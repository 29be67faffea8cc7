"""Lines over places in a row (layers, positions), on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dsv3export.report.charts.frame import Frame
from dsv3export.report.charts.scale import LogScale
from dsv3export.report.charts.svg import drawing, element, text
from dsv3export.report.text import number

_MOST_DOTS = 80


@dataclass(frozen=True)
class Line:
    """`style` is a colour of the style sheet, ``a`` to ``d``; `values` are not negative, one for each place."""

    label: str
    style: str
    values: Sequence[float]


def line_chart(
    lines: Sequence[Line], places: Sequence[str], x: str, y: str, *, bound: float | None = None, label: str
) -> Markup:
    """All lines over the same places.

    Args:
        places: What each place is called.
        x, y: What the axes show.
        bound: A value that is marked by a line of its own.
        label: The picture in words.
    """
    frame = Frame()
    marks = [] if bound is None else [bound]
    scale = LogScale.of([value for line in lines for value in line.values] + marks, *frame.y)
    xs = _spread(len(places), frame)
    shown = [*frame.grid(scale.ticks()), *frame.axis(list(zip(xs, places, strict=True))), *frame.titles(x, y)]
    if bound is not None:
        at = scale.at(bound)
        shown += [
            element("line", x1=frame.x[0], x2=frame.x[1], y1=at, y2=at, class_="bound"),
            text(frame.x[0] + 4, at - 5, f"tolerance {number(bound)}", class_="tick bound-label"),
        ]
    for line in lines:
        shown += _line(line, xs, scale)
    shown += [_hit(place, [(line.label, line.values[i]) for line in lines], xs, i, frame)
              for i, place in enumerate(places)]  # fmt: skip
    return drawing(frame.width, frame.height, label, shown, "wide")


def _line(line: Line, xs: Sequence[float], scale: LogScale) -> list[Markup]:
    points = list(zip(xs, map(scale.at, line.values), strict=True))
    if not points:
        return []
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = points if len(points) <= _MOST_DOTS else []
    return [
        element("path", d=path, class_=f"line {line.style}"),
        *(element("circle", cx=round(x, 1), cy=round(y, 1), r=3.2, class_=f"dot {line.style}") for x, y in dots),
    ]


def _hit(place: str, values: Sequence[tuple[str, float]], xs: Sequence[float], i: int, frame: Frame) -> Markup:
    """An invisible strip with what is above a place."""
    left = (xs[i - 1] + xs[i]) / 2 if i else frame.x[0]
    right = (xs[i] + xs[i + 1]) / 2 if i + 1 < len(xs) else frame.x[1]
    tip = "\n".join([place, *(f"{label}: {number(value)}" for label, value in values)])
    return element("rect", x=left, y=frame.top, width=right - left, height=frame.y[0] - frame.top, class_="hit",
                   data_tip=tip)  # fmt: skip


def _spread(count: int, frame: Frame) -> list[float]:
    start, end = frame.x
    step = (end - start) / max(count, 1)
    return [start + (i + 0.5) * step for i in range(count)]
