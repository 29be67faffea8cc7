"""Errors by row and position of the token, long prompts by the worst of some neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dsv3export.report.charts.heatmap import HeatScale, heatmap
from dsv3export.report.diff_view import bin_starts, binned
from dsv3export.report.text import number

_WIDTH = 840


def position_heatmap(rows: Sequence[str], errors: Sequence[Sequence[float]], scale: HeatScale, what: str) -> Markup:
    """A row for each layer.

    Args:
        rows: The layers' labels.
        errors: By position, for each layer.
        scale: Of the colours.
        what: What is shown, in words.
    """
    series = [binned(values) for values in errors]
    length = max(len(values) for values in errors)
    starts = bin_starts(length)
    every = max(1, len(starts) // 12)

    def tip(row: int, column: int) -> str:
        return f"layer {rows[row]}, {_run(starts, column, length)}\n{what}: {number(series[row][column])}"

    return heatmap(
        rows,
        [str(start) if i % every == 0 else "" for i, start in enumerate(starts)],
        series,
        scale,
        label=f"{what[0].upper()}{what[1:]} by layer and position",
        tip=tip,
        slanted=False,
        cell=(max(_WIDTH / max(len(starts), 1), 12), 17),
    )


def _run(starts: Sequence[int], column: int, length: int) -> str:
    end = (starts[column + 1] if column + 1 < len(starts) else length) - 1
    return f"position {end}" if end == starts[column] else f"positions {starts[column]} to {end}, the worst of them"
