"""A comparison of two models as a picture, by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dsv3export.compare.distributions import DistributionSummary
from dsv3export.compare.layers import LayerDiff
from dsv3export.report.diff_caches import KINDS
from dsv3export.report.diff_causes import cause_names
from dsv3export.report.diff_view import DiffView, bin_starts, binned, part_of
from dsv3export.report.matplotlib_figure import PlotFormat, figure_bytes, new_figure, require_matplotlib
from dsv3export.report.text import number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#2a78d6", "#d4561a", "#15876a", "#7d4fc0")
_A, _B, _BAD, _GRID = *_COLOURS[:2], "#c22d28", "#dfded9"
# Inches: of a row of panels, of what is above and below them.
_ROW, _HEAD, _FOOT = 3.65, 1.05, 1.0
# What stands for infinities and NaN on axes by powers of ten.
_CEILING = 1e2


def diff_plot(diff: LayerDiff, form: PlotFormat) -> bytes:
    """Errors by layer, by value and by position, flips, divergence; causes, caches and drafts where they were compared.

    Raises BackendError without matplotlib.
    """
    require_matplotlib()
    from matplotlib import rc_context

    view = DiffView(diff)
    panels = _panels(diff)
    rows = -(-len(panels) // 2)
    height = _ROW * rows + _HEAD + _FOOT
    with rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = new_figure(figsize=(13, height))
        figure.text(0.06, 1 - 0.2 / height, _plain(view.headline), fontsize=14, fontweight="bold", va="top")
        figure.text(0.06, 1 - 0.55 / height, _plain(f"A: {diff.expected}    B: {diff.got}", 200), fontsize=9,
                    color="#4b4a45", va="top")  # fmt: skip
        grid = figure.add_gridspec(rows, 2, left=0.06, right=0.98, top=1 - _HEAD / height, bottom=_FOOT / height,
                                   hspace=0.72, wspace=0.14)  # fmt: skip
        for place, panel in enumerate(panels):
            panel(figure.add_subplot(grid[divmod(place, 2)]), view)
        return figure_bytes(figure, form)


def _panels(diff: LayerDiff) -> list[Callable[[Axes, DiffView], None]]:
    panels: list[Callable[[Axes, DiffView], None]] = [_growth, _inside, _flips, _positions]
    if diff.causes is not None:
        panels.append(_causes)
    if diff.caches:
        panels.append(_caches)
    panels += [_divergence, _divergence_by_position]
    if diff.drafts is not None:
        panels += [_drafts, _drafts_by_position]
    return panels


def _growth(axes: Axes, view: DiffView) -> None:
    layers = view.layers
    places = range(len(layers))
    axes.set_title("Relative error by layer", loc="left")
    so_far = [layer.output.propagated.relative for layer in layers]
    errors = _clipped(so_far + [layer.own.injected.worst_row for layer in layers])
    axes.semilogy(places, errors[: len(layers)], color=_A, marker="o", markersize=3, label="error so far")
    axes.semilogy(places, errors[len(layers) :], color=_B, marker="o", markersize=3,
                  label="own error, largest in the layer")  # fmt: skip
    if math.isfinite(view.diff.tolerance) and view.diff.tolerance > 0:
        axes.axhline(view.diff.tolerance, color=_BAD, linestyle="--", linewidth=1,
                     label=f"tolerance {number(view.diff.tolerance)}")  # fmt: skip
    _name_places(axes, [layer.label for layer in layers])
    axes.grid(color=_GRID)
    axes.legend(frameon=False, fontsize=8)


def _flips(axes: Axes, view: DiffView) -> None:
    axes.set_title("Tokens that a router sends to other experts", loc="left")
    layers = view.routed
    axes.bar(range(len(layers)), [len(layer.flips()) for layer in layers], color=_A, label="error so far")
    axes.bar(range(len(layers)), [len(layer.flips("injected")) for layer in layers], color=_B, width=0.4,
             label="on A's input")  # fmt: skip
    axes.set_ylabel("tokens")
    _name_places(axes, [layer.label for layer in layers])
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    if layers:
        axes.legend(frameon=False, fontsize=8)


def _inside(axes: Axes, view: DiffView) -> None:
    axes.set_title("Own error of each value, log10", loc="left")
    rows = [{part_of(value): value.injected.worst_row for value in layer.values} for layer in view.decoder]
    table = [[row.get(part, math.nan) for part in view.parts] for row in rows]
    _heat(axes, table)
    axes.set_xticks(range(len(view.parts)), [_plain(part, 40) for part in view.parts], rotation=90, fontsize=6)
    _name_rows(axes, [layer.label for layer in view.decoder])


def _positions(axes: Axes, view: DiffView) -> None:
    axes.set_title("Error so far by layer and position, log10", loc="left")
    rows = view.decoder or view.layers
    length = max(len(layer.output.propagated.by_position) for layer in rows)
    starts = bin_starts(length)
    table = [binned(layer.output.propagated.by_position) for layer in rows]
    _heat(axes, [row + [math.nan] * (len(starts) - len(row)) for row in table])
    shown = range(0, len(starts), max(1, len(starts) // 10))
    axes.set_xticks(list(shown), [str(starts[place]) for place in shown])
    axes.set_xlabel("position")
    _name_rows(axes, [layer.label for layer in rows])


def _causes(axes: Axes, view: DiffView) -> None:
    axes.set_title("Own error by cause: the size of each one's step", loc="left")
    split = view.diff.causes
    if split is None:
        return
    for name, colour, place in zip(cause_names(split), _COLOURS, range(len(_COLOURS)), strict=False):
        steps = [layer.causes[place].relative for layer in split.layers]
        axes.semilogy(range(len(steps)), _clipped(steps), color=colour, marker="o", markersize=3,
                      label=f"{name}, {split.logits.causes[place].share:.0%} of the logits' error")  # fmt: skip
    _name_places(axes, [layer.stage.removeprefix("layers.") for layer in split.layers])
    axes.grid(color=_GRID)
    axes.legend(frameon=False, fontsize=8)


def _caches(axes: Axes, view: DiffView) -> None:
    axes.set_title("Latent cache: relative error of its rows by layer", loc="left")
    caches = view.diff.caches
    for (_, label, of), colour in zip(KINDS, _COLOURS, strict=False):
        errors = [of(cache).relative for cache in caches]
        axes.semilogy(range(len(errors)), _clipped(errors), color=colour, marker="o", markersize=3,
                      label=label.partition(":")[0])  # fmt: skip
    _name_places(axes, [cache.stage.removeprefix("layers.") for cache in caches])
    axes.grid(color=_GRID)
    axes.legend(frameon=False, fontsize=8)


def _divergence(axes: Axes, view: DiffView) -> None:
    _histogram(axes, view.diff.logits, "KL divergence")


def _drafts(axes: Axes, view: DiffView) -> None:
    if view.diff.drafts is not None:
        _histogram(axes, view.diff.drafts, "MTP drafts, KL")


def _histogram(axes: Axes, found: DistributionSummary, what: str) -> None:
    title = f"{what}: mean {number(found.kl_mean)}, max {number(found.kl_max)} nats; top-1 {found.top1:.2%}"
    axes.set_title(title, loc="left")
    edges, counts = found.kl_histogram.edges, found.kl_histogram.counts
    used = [place for place, count in enumerate(counts) if count] or [0]
    shown = slice(max(used[0] - 1, 0), used[-1] + 2)
    names = [f"< {number(edges[0])}" if edges else "all", *(number(edge) for edge in edges)][shown]
    axes.bar(range(len(names)), counts[shown], color=_A)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_xlabel("nats, from")
    axes.set_ylabel("positions")
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)


def _divergence_by_position(axes: Axes, view: DiffView) -> None:
    _by_position(axes, view.diff.logits, "KL divergence by position, mean over prompts")


def _drafts_by_position(axes: Axes, view: DiffView) -> None:
    if view.diff.drafts is not None:
        _by_position(axes, view.diff.drafts, "MTP drafts, KL divergence by position")


def _by_position(axes: Axes, found: DistributionSummary, title: str) -> None:
    axes.set_title(title, loc="left")
    values = found.kl_by_position
    axes.semilogy(bin_starts(len(values), 256), _clipped(binned(values, 256)), color=_A, linewidth=1)
    axes.set_xlabel("position")
    axes.set_ylabel("nats")
    axes.grid(color=_GRID)


def _heat(axes: Axes, table: list[list[float]]) -> None:
    """Errors by their logarithm; what is missing is left white, and the least tenth shares the lightest colour."""
    errors = np.array(table, np.float64).reshape(len(table), -1)
    with np.errstate(divide="ignore"):
        levels = np.log10(np.nan_to_num(errors, nan=np.nan, posinf=_CEILING))
    known = levels[np.isfinite(levels)]
    low, high = (float(np.quantile(known, 0.1)), float(known.max())) if known.size else (-1.0, 0.0)
    low = min(low, high - 1)
    shown = axes.imshow(np.clip(levels, low, high), aspect="auto", cmap="Blues", vmin=low, vmax=high,
                        interpolation="nearest")  # fmt: skip
    axes.figure.colorbar(shown, ax=axes, pad=0.01)


def _clipped(errors: list[float]) -> list[float]:
    """What a logarithmic axis can show: 0 below all others, and what is no number at the top."""
    known = [error for error in errors if 0 < error < math.inf]
    floor = min(known, default=1.0) / 10
    return [_CEILING if math.isnan(error) else min(max(error, floor), _CEILING) for error in errors]


def _plain(text: str, limit: int = 120) -> str:
    """A text in which matplotlib sees no formula."""
    return visible(text, limit).replace("$", r"\$")


def _name_places(axes: Axes, names: list[str]) -> None:
    every = max(1, len(names) // 16)
    axes.set_xticks(list(range(0, len(names), every)), [_plain(name, 12) for name in names[::every]])
    axes.set_xlabel("layer")


def _name_rows(axes: Axes, names: list[str]) -> None:
    every = max(1, len(names) // 16)
    axes.set_yticks(list(range(0, len(names), every)), [_plain(name, 12) for name in names[::every]])
    axes.set_ylabel("layer")
