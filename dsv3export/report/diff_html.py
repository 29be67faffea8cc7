"""A comparison of two models as an HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from dsv3export.compare.difference import Summary
from dsv3export.compare.distributions import DistributionSummary, Histogram
from dsv3export.compare.layers import LayerDiff, ValueDiff
from dsv3export.report.charts.bars import Part, bar_chart
from dsv3export.report.charts.heatmap import HeatScale, heatmap
from dsv3export.report.charts.lines import Line, line_chart
from dsv3export.report.diff_caches import KINDS, cache_chart, cache_positions
from dsv3export.report.diff_causes import cause_chart, cause_columns, cause_facts, cause_keys, cause_rows
from dsv3export.report.diff_view import (
    METRICS,
    Cell,
    DiffView,
    LayerView,
    bin_starts,
    binned,
    fault_facts,
    part_of,
    scalar,
)
from dsv3export.report.html import render_page
from dsv3export.report.positions import position_heatmap
from dsv3export.report.text import number, percent

_SECTIONS = (
    ("growth", "Growth"),
    ("layers", "Layers"),
    ("parts", "Inside the layers"),
    ("routers", "Routers"),
    ("causes", "Causes"),
    ("positions", "Positions"),
    ("caches", "Latent caches"),
    ("tokens", "Next tokens"),
    ("drafts", "MTP drafts"),
    ("values", "All values"),
)
# (label, meaning, whether it is a number) of a table's columns.
_NAME = ("name", "sorted in the order of computation", False)
_VALUE_COLUMNS = (
    _NAME,
    ("shape", "sorted by the number of elements", False),
    ("own, worst row", "largest relative error of a token's row, on A's input", True),
    ("own", "relative error, on A's input", True),
    ("so far", "relative error, on B's own input", True),
    ("cosine", "of the angle between both, on B's own input", True),
    ("SNR, dB", "signal to noise, on B's own input", True),
    ("max abs", "largest absolute error, on B's own input", True),
    ("where the own error is largest", "sorted by position", False),
)
_MOST_FLIPS = 100
_MOST_NAMES = 500


def diff_page(diff: LayerDiff) -> bytes:
    """One self-contained page, UTF-8."""
    view = DiffView(diff)
    scale = HeatScale.of(
        error for value in diff.values for error in (value.injected.worst_row, value.propagated.relative)
    )
    optional = {"routers": view.routed, "causes": diff.causes, "caches": diff.caches, "drafts": diff.drafts}
    sections = [(anchor, label) for anchor, label in _SECTIONS if optional.get(anchor, True)]
    return render_page(
        "diff.html",
        title=f"diff: {view.headline}",
        sections=sections,
        view=view,
        facts=_facts(view),
        cards=_cards(view),
        fault=[] if diff.first_fault is None else fault_facts(diff.first_fault),
        growth=_growth(view),
        layer_columns=[_NAME, *((metric.label, metric.meaning, True) for metric in METRICS)],
        layer_rows=_layer_rows(view),
        own=_parts(view, "own error", lambda value: value.injected.worst_row, scale, diff.tolerance),
        so_far=_parts(view, "error so far", lambda value: value.propagated.relative, scale, math.inf),
        legend=scale.legend(),
        flips=_flips(view),
        flip_rows=[(layer.label, flip) for layer in view.routed for flip in layer.flips()][:_MOST_FLIPS],
        positions=_positions(view),
        kl_positions=_kl_positions(diff.logits.kl_by_position, "the next-token distributions"),
        kl_histogram=_histogram(diff.logits.kl_histogram),
        worst=diff.logits.worst,
        causes=_causes(diff),
        caches=_caches(diff),
        drafts=_drafts(diff),
        value_columns=_VALUE_COLUMNS,
        value_rows=[_value_row(place, value, scale) for place, value in enumerate(diff.values)],
        only=[
            (side, names[:_MOST_NAMES]) for side, names in (("A", diff.only_expected), ("B", diff.only_got)) if names
        ],
    )


def _facts(view: DiffView) -> list[tuple[str, str]]:
    diff = view.diff
    tolerance = "none" if math.isinf(diff.tolerance) else f"{number(diff.tolerance)}, relative error of a token's row"
    prompts = f"{len(diff.prompts):,} prompt{'s' * (len(diff.prompts) != 1)}, {view.tokens:,} tokens"
    return [("A, the right one", diff.expected), ("B, in question", diff.got), ("compared on", prompts),
            ("tolerance", tolerance)]  # fmt: skip


def _cards(view: DiffView) -> list[tuple[str, str, str]]:
    """(label, figure, explanation)."""
    cards = _distribution_cards(view.diff.logits)
    if view.routed:
        tokens = sum(layer.router.propagated.tokens for layer in view.routed if layer.router is not None)
        share = view.flips / tokens if tokens else 0.0
        cards.append(("router flips", f"{view.flips:,}", f"{percent(share)} of {tokens:,} choices"))
    return cards


def _distribution_cards(found: DistributionSummary) -> list[tuple[str, str, str]]:
    return [
        ("KL divergence", number(found.kl_mean), f"nats a token; at most {number(found.kl_max)}"),
        ("JS divergence", number(found.js_mean), "nats; ln 2 at most"),
        ("same top token", percent(found.top1), f"top five: {percent(found.top5)} in common"),
        ("worst rank", f"{found.worst_rank:,}", "of A's likeliest token in B"),
    ]


def _growth(view: DiffView) -> Markup:
    return line_chart(
        [
            Line("own error, largest in the layer", "b", [layer.own.injected.worst_row for layer in view.layers]),
            Line("own error of the output", "c", [layer.output.injected.relative for layer in view.layers]),
            Line("error so far", "a", [layer.output.propagated.relative for layer in view.layers]),
        ],
        [layer.label for layer in view.layers],
        "layer",
        "relative error",
        bound=None if math.isinf(view.diff.tolerance) else view.diff.tolerance,
        label="Relative errors by layer: made by the layer itself, and accumulated so far. The table below has them.",
    )


def _layer_rows(view: DiffView) -> list[list[Cell]]:
    """Each column with colours of its own, as shares, errors and decibels have little in common."""
    rows: list[list[Cell]] = [[(layer.name, place, "")] for place, layer in enumerate(view.layers)]
    for metric in METRICS:
        values = [metric.read(layer) for layer in view.layers]
        scale = HeatScale.of(map(metric.severity, values))
        for row, value in zip(rows, values, strict=True):
            row.append((number(value), value, scale.style(metric.severity(value))))
    return rows


def _parts(view: DiffView, what: str, read: Callable[[ValueDiff], float], scale: HeatScale, bound: float) -> Markup:
    by_part = [{part_of(value): value for value in layer.values} for layer in view.decoder]
    cells = [[read(values[part]) if part in values else None for part in view.parts] for values in by_part]
    rows = [layer.label for layer in view.decoder]

    def tip(row: int, column: int) -> str:
        value = by_part[row][view.parts[column]]
        return (f"{value.name}\nown error: {number(value.injected.worst_row)}"
                f"\nerror so far: {number(value.propagated.relative)}")  # fmt: skip

    return heatmap(rows, view.parts, cells, scale, label=f"The {what} of every value in every decoder layer", tip=tip,
                   bound=bound)  # fmt: skip


def _flips(view: DiffView) -> Markup | None:
    if not view.routed:
        return None
    causes = [_flip_causes(layer) for layer in view.routed]
    parts = [
        Part(label, style, [counts[i] for counts in causes])
        for i, (label, style) in enumerate(
            (("on A's input already", "b"), ("by the error so far", "a"), ("not explained by the scores", "bad"))
        )
    ]
    labels = [layer.label for layer in view.routed]
    return bar_chart(parts, [f"layer {label}" for label in labels], labels, "layer", "tokens with other experts",
                     label="Router flips by layer")  # fmt: skip


def _flip_causes(layer: LayerView) -> tuple[int, int, int]:
    """Flips of the propagated run: also on A's input, only on B's own, and those that the scores do not explain."""
    own = {(flip.prompt, flip.position) for flip in layer.flips("injected")}
    explained = [(flip.prompt, flip.position) in own for flip in layer.flips() if flip.explained]
    return sum(explained), len(explained) - sum(explained), len(layer.flips()) - len(explained)


def _positions(view: DiffView) -> Markup:
    rows = view.decoder or view.layers
    errors = [layer.output.propagated.by_position for layer in rows]
    scale = HeatScale.of(error for values in errors for error in binned(values))
    return position_heatmap([layer.label for layer in rows], errors, scale, "error so far")


def _kl_positions(values: Sequence[float], what: str) -> Markup:
    starts = bin_starts(len(values), 256)
    return line_chart(
        [Line("KL, mean over prompts", "a", binned(values, 256))],
        [str(start) for start in starts],
        "position",
        "KL divergence, nats",
        label=f"KL divergence of {what} by position",
    )


def _drafts(diff: LayerDiff) -> dict[str, object] | None:
    """What is shown of the MTP layer's drafts; None where there are none to compare."""
    drafts = diff.drafts
    if drafts is None:
        return None
    return {
        "cards": _distribution_cards(drafts),
        "positions": _kl_positions(drafts.kl_by_position, "the drafts' distributions"),
        "histogram": _histogram(drafts.kl_histogram),
        "worst": drafts.worst,
    }


def _caches(diff: LayerDiff) -> dict[str, object] | None:
    if not diff.caches:
        return None
    return {
        "chart": cache_chart(diff.caches),
        "keys": [(style, label) for style, label, _ in KINDS],
        "panes": [(label.partition(":")[0], cache_positions(diff.caches, of, label.partition(":")[0]))
                  for _, label, of in KINDS],
    }  # fmt: skip


def _causes(diff: LayerDiff) -> dict[str, object] | None:
    split = diff.causes
    if split is None:
        return None
    return {"chart": cause_chart(split), "keys": cause_keys(split), "columns": cause_columns(split),
            "rows": cause_rows(split), "facts": cause_facts(split)}  # fmt: skip


def _histogram(histogram: Histogram) -> Markup:
    """Of the bins between the first and the last that hold something."""
    names = [f"below {number(histogram.edges[0])}"]
    names += [f"{number(a)} to {number(b)}" for a, b in zip(histogram.edges, histogram.edges[1:], strict=False)]
    names.append(f"from {number(histogram.edges[-1])} on, or no number")
    ticks = ["0", *(number(edge) if math.log10(edge) % 1 < 1e-6 else "" for edge in histogram.edges)]
    used = [i for i, count in enumerate(histogram.counts) if count]
    shown = slice(max(used[0] - 1, 0), used[-1] + 2) if used else slice(0, 1)
    return bar_chart([Part("positions", "a", histogram.counts[shown])], names[shown], ticks[shown],
                     "KL divergence, nats", "positions", label="Histogram of KL divergence")  # fmt: skip


def _value_row(place: int, value: ValueDiff, scale: HeatScale) -> list[Cell]:
    own, so_far = value.injected, value.propagated
    shape = " × ".join(str(size) for size in value.shape)
    errors = [(own.worst_row, True), (own.relative, True), (so_far.relative, True), (so_far.cosine, False),
              (so_far.snr_db, False), (so_far.max_abs, False)]  # fmt: skip
    numbers = [(number(error), error, scale.style(error) if coloured else "") for error, coloured in errors]
    return [(value.name, place, ""), (shape, float(math.prod(value.shape)), "line"), *numbers, (*_worst(own), "line")]


def _worst(summary: Summary) -> tuple[str, float]:
    place = summary.worst
    if place is None:
        return "", -1.0
    text = (f"{place.prompt}:{place.position}:{place.index}  {scalar(place.expected)} → {scalar(place.got)}"
            if summary.max_abs else "")  # fmt: skip
    return text, float(place.position)
