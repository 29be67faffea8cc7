"""What charts with two axes have in common: the room for the drawing, its grid and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dsv3export.report.charts.svg import element, text

Ticks = Sequence[tuple[float, str]]
_LABEL_WIDTH = 6.6


@dataclass(frozen=True)
class Frame:
    """In SVG units; y grows downwards."""

    width: float = 920
    height: float = 300
    left: float = 64
    right: float = 16
    top: float = 26
    bottom: float = 44

    @property
    def x(self) -> tuple[float, float]:
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        """The bottom and the top of the drawing."""
        return self.height - self.bottom, self.top

    def grid(self, ticks: Ticks) -> list[Markup]:
        """Horizontal lines with their labels."""
        lines = []
        for y, label in ticks:
            lines.append(element("line", x1=self.x[0], x2=self.x[1], y1=y, y2=y, class_="grid"))
            lines.append(text(self.left - 8, y + 4, label, class_="tick", text_anchor="end"))
        return lines

    def axis(self, ticks: Ticks) -> list[Markup]:
        """The base line, and labels below it: those for which there is room."""
        base = self.y[0]
        shown = [element("line", x1=self.x[0], x2=self.x[1], y1=base, y2=base, class_="base")]
        taken = -1e9
        for x, label in ticks:
            half = len(label) * _LABEL_WIDTH / 2
            if x - half > taken:
                shown.append(text(x, base + 17, label, class_="tick", text_anchor="middle"))
                taken = x + half + 18
        return shown

    def titles(self, x: str, y: str) -> list[Markup]:
        """What the axes show: below at the right, and above at the left."""
        return [
            text(self.x[1], self.height - 6, x, class_="axis", text_anchor="end"),
            text(4, 13, y, class_="axis"),
        ]
