"""A grid of errors, coloured by their size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dsv3export.report.charts.svg import drawing, element, text
from dsv3export.report.text import number, visible

_LEVELS = 9
# How many decades a level may span; the finest that covers what is there is taken.
_STEPS = (0.25, 0.5, 1.0)
_LETTER = 6.3
_MOST_LETTERS = 40


@dataclass(frozen=True)
class HeatScale:
    """Nine levels of colour by the logarithm of an error: `top` is log10 of the upper end, `step` a level's decades."""

    top: float = 0.0
    step: float = 1.0

    @classmethod
    def of(cls, errors: Iterable[float]) -> HeatScale:
        """One whose last level has the largest of `errors`; the least tenth may share the first."""
        known = sorted(math.log10(error) for error in errors if 0 < error < math.inf)
        if not known:
            return cls()
        low, high = known[len(known) // 10], known[-1]
        for step in _STEPS:
            top = math.ceil(high / step) * step
            if top - _LEVELS * step <= low:
                return cls(top, step)
        return cls(math.ceil(high), _STEPS[-1])

    def style(self, error: float) -> str:
        """``h1`` to ``h9``; ``h0`` for 0, ``hx`` for what is no finite number."""
        if not math.isfinite(error):
            return "hx"
        if error <= 0:
            return "h0"
        below = math.floor((self.top - math.log10(error)) / self.step)
        return f"h{min(max(_LEVELS - below, 1), _LEVELS)}"

    def legend(self) -> Markup:
        """The colours and what they stand for."""
        width, shown = 62.0, []
        edges = [10 ** (self.top - (_LEVELS - i) * self.step) for i in range(1, _LEVELS)]
        names = ["0", f"< {number(edges[0])}", *(f"≥ {number(edge)}" for edge in edges), "∞, NaN"]
        styles = [f"h{i}" for i in range(_LEVELS + 1)] + ["hx"]
        for i, (style, name) in enumerate(zip(styles, names, strict=True)):
            shown.append(element("rect", x=i * width, y=0, width=width - 2, height=12, class_=style))
            shown.append(text(i * width + width / 2 - 1, 26, name, class_="tick", text_anchor="middle"))
        return drawing(len(styles) * width, 30, "The colours by the size of an error, from small to large", shown)


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    scale: HeatScale,
    *,
    label: str,
    tip: Callable[[int, int], str],
    bound: float = math.inf,
    slanted: bool = True,
    cell: tuple[float, float] = (26, 17),
) -> Markup:
    """A cell for each row and column.

    Long names are cut; `tip` has room for all of them.

    Args:
        rows, columns: Their names; an empty one is not written.
        cells: Errors, not negative; None where there is none.
        scale: Their colours.
        label: The picture in words.
        tip: What is shown of (row, column).
        bound: Cells above it get a frame.
        slanted: Whether names of columns are long, and slanted for it.
        cell: Width and height.
    """
    rows, columns = ([visible(name, _MOST_LETTERS) for name in names] for names in (rows, columns))
    width, height = cell
    left = max((len(row) for row in rows), default=0) * _LETTER + 12
    longest = max((len(column) for column in columns), default=0) * _LETTER
    top = longest * 0.72 + 14 if slanted else 20
    right = longest * 0.72 + 8 if slanted else 16
    shown = [_column_name(left + (i + 0.5) * width, top - 6, name, slanted) for i, name in enumerate(columns) if name]
    for row, values in enumerate(cells):
        y = top + row * height
        shown.append(text(left - 8, y + height * 0.5 + 4, rows[row], class_="tick", text_anchor="end"))
        for column, value in enumerate(values):
            if value is not None:
                style = scale.style(value) + (" over" if not value <= bound else "")
                shown.append(element("rect", x=round(left + column * width, 1), y=round(y, 1), width=width - 1,
                                     height=height - 1, class_=style, data_tip=tip(row, column)))  # fmt: skip
    return drawing(left + len(columns) * width + right, top + len(rows) * height + 4, label, shown)


def _column_name(x: float, y: float, name: str, slanted: bool) -> Markup:
    turn = f"rotate(-45 {x:.6g} {y:.6g})" if slanted else None
    return text(x, y, name, class_="tick", text_anchor="start" if slanted else "middle", transform=turn)
