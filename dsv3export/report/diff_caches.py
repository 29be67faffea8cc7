"""What the latent caches hold, as a page shows it: errors by layer, and by layer and position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from dsv3export.compare.caches import CacheDiff
from dsv3export.compare.difference import Summary
from dsv3export.report.charts.heatmap import HeatScale
from dsv3export.report.charts.lines import Line, line_chart
from dsv3export.report.positions import position_heatmap

# (style, meaning, which of a cache's summaries).
Kind = tuple[str, str, Callable[[CacheDiff], Summary]]
KINDS: tuple[Kind, ...] = (
    ("a", "so far: B's cache against A's, each on its own input", lambda cache: cache.propagated),
    ("b", "own: the same, the layer's input being A's", lambda cache: cache.injected),
    ("c", "format alone: what B's cache holds against what B has computed for it", lambda cache: cache.format),
)


def cache_chart(caches: Sequence[CacheDiff]) -> Markup:
    """Relative errors of the caches by layer."""
    lines = [
        Line(label.partition(":")[0], style, [of(cache).relative for cache in caches]) for style, label, of in KINDS
    ]
    return line_chart(lines, _labels(caches), "layer", "relative error of the cache's rows",
                      label="Relative errors of the latent cache by layer")  # fmt: skip


def cache_positions(caches: Sequence[CacheDiff], of: Callable[[CacheDiff], Summary], what: str) -> Markup:
    """The error of a cached row by layer and position."""
    scale = HeatScale.of(error for _, _, each in KINDS for cache in caches for error in each(cache).by_position)
    return position_heatmap(_labels(caches), [of(cache).by_position for cache in caches], scale, what)


def _labels(caches: Sequence[CacheDiff]) -> list[str]:
    return [cache.stage.removeprefix("layers.") for cache in caches]
