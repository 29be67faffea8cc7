"""Where an error comes from, as a page shows it: the steps of each cause by layer, and their shares."""

from __future__ import annotations

from markupsafe import Markup

from dsv3export.compare.causes import CauseSplit, ErrorSplit
from dsv3export.report.charts.heatmap import HeatScale
from dsv3export.report.charts.lines import Line, line_chart
from dsv3export.report.diff_view import Cell
from dsv3export.report.text import number, percent

WHOLE = "logits, whole model"
# As many as there can be, in the order of the chain.
STYLES = ("a", "b", "c", "d")
_MEANINGS = {
    "weights": "weights as they are stored",
    "activations": "activations rounded",
    "cache": "the cache in its format",
    "backend": "the engine's own kernels and what they round",
}


def cause_chart(split: ErrorSplit) -> Markup:
    """Size of each cause's step by layer."""
    lines = [
        Line(name, style, [layer.causes[place].relative for layer in split.layers])
        for place, (name, style) in enumerate(zip(cause_names(split), STYLES, strict=False))
    ]
    names = [layer.stage.removeprefix("layers.") for layer in split.layers]
    return line_chart(lines, names, "layer", "relative error, the cause's step",
                      label="Size of each cause's step by layer. The table below has the numbers.")  # fmt: skip


def cause_names(split: ErrorSplit) -> list[str]:
    """In the order of the chain."""
    return [cause.name for cause in split.logits.causes]


def cause_keys(split: ErrorSplit) -> list[tuple[str, str]]:
    """(style, meaning) of the chart's lines."""
    names = cause_names(split)
    return [(style, f"{name}: {_MEANINGS.get(name, name)}") for name, style in zip(names, STYLES, strict=False)]


def cause_columns(split: ErrorSplit) -> list[tuple[str, str, bool]]:
    """Of the table: (label, meaning, is a number)."""
    columns = [("name", "sorted in the order of computation", False),
               ("total", "relative error against the model in float32", True)]  # fmt: skip
    for name in cause_names(split):
        columns += [
            (name, f"size of the step: {_MEANINGS.get(name, name)}", True),
            (f"{name}, share", "of the total; below 0 it takes back what others did", True),
        ]
    return columns


def cause_rows(split: ErrorSplit) -> list[list[Cell]]:
    """A row for each stage, and one for the logits of the whole model."""
    named = [(layer.stage, layer) for layer in split.layers] + [(WHOLE, split.logits)]
    scale = HeatScale.of(cause.relative for _, layer in named for cause in layer.causes)
    return [_row(place, name, layer, scale) for place, (name, layer) in enumerate(named)]


def cause_facts(split: ErrorSplit) -> list[tuple[str, str]]:
    """KL divergence as causes come in, one after the other."""
    steps = zip(cause_names(split), split.kl, strict=True)
    return [(f"KL divergence with {name}" if place == 0 else f"and {name}", f"{number(kl)} nats a token")
            for place, (name, kl) in enumerate(steps)]  # fmt: skip


def _row(place: int, name: str, layer: CauseSplit, scale: HeatScale) -> list[Cell]:
    row: list[Cell] = [(name, place, ""), (number(layer.total), layer.total, scale.style(layer.total))]
    for cause in layer.causes:
        row += [(number(cause.relative), cause.relative, scale.style(cause.relative)),
                (percent(cause.share), cause.share, "")]  # fmt: skip
    return row
