"""What `dsv3export diff` and `report` print: a comparison in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dsv3export.cli.tables import print_facts, print_table
from dsv3export.report.diff_view import DiffView, LayerView, binned, part_of
from dsv3export.report.text import visible

if TYPE_CHECKING:
    from rich.text import Text

    from dsv3export.compare.caches import CacheDiff
    from dsv3export.compare.causes import CauseSplit, ErrorSplit
    from dsv3export.compare.difference import Summary
    from dsv3export.compare.layers import Fault, LayerDiff

_SPARKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEAST = 1e-8  # a relative error that is shown as nothing
_BAR_LENGTH = 10
_POSITIONS = 16
_STYLES = ("green", "yellow", "red")


def show(diff: LayerDiff, show_all: bool) -> None:
    """Prints a comparison for people."""
    view = DiffView(diff)
    print_facts("Compared", [("A", visible(diff.expected)), ("B", visible(diff.got))])
    columns = ("value" if show_all else "layer", "own error", "", "worst of all in", "error so far", "by position",
               "SNR, dB", "flips")  # fmt: skip
    rows = _value_rows(view) if show_all else _layer_rows(view)
    print_table("Layer by layer (relative errors)", columns, rows, right=(columns[1], columns[4], *columns[6:]))
    _show_caches(diff, show_all)
    if diff.causes is not None:
        _show_causes(diff.causes)
    logits = diff.logits
    print_facts(
        "Next-token distributions",
        [
            ("KL divergence", f"{logits.kl_mean:.3e} nats, at most {logits.kl_max:.3e}; JS {logits.js_mean:.3e}"),
            ("by position", spark_line(logits.kl_by_position)),
            ("agreement", f"top-1 {logits.top1:.2%}, top-5 {logits.top5:.2%}; worst rank {logits.worst_rank}"),
            *_draft_facts(diff),
            ("first fault", fault_text(diff.first_fault) if diff.first_fault else _within(diff.tolerance)),
        ],
    )


def _draft_facts(diff: LayerDiff) -> list[tuple[str, str]]:
    if diff.drafts is None:
        return []
    kl, top1 = diff.drafts.kl_mean, diff.drafts.top1
    return [("MTP drafts", f"KL divergence {kl:.3e} nats, at most {diff.drafts.kl_max:.3e}; top-1 {top1:.2%}")]


def _show_caches(diff: LayerDiff, show_all: bool) -> None:
    """All layers' latent caches, or that which its own format rounds most and the one that is furthest off."""
    chosen = list(diff.caches)
    if chosen and not show_all:
        worst = (max(chosen, key=_format_error), max(chosen, key=lambda cache: cache.propagated.relative))
        chosen = [cache for cache in chosen if cache in worst]
    rows = [
        (visible(cache.stage), f"{_format_error(cache):.1e}", spark_line(cache.format.by_position),
         f"{cache.propagated.relative:.1e}", spark_line(cache.propagated.by_position))
        for cache in chosen
    ]  # fmt: skip
    if rows:
        columns = ("layer", "format alone", "by position", "error so far", "by position ")
        print_table("Latent cache" if show_all else "Latent cache, worst layers", columns, rows,
                    right=(columns[1], columns[3]))  # fmt: skip


def _show_causes(split: ErrorSplit) -> None:
    """For each stage, and for the logits of the whole model: the total, and each cause's step and share."""
    names = [cause.name for cause in split.logits.causes]
    rows = [_cause_row(visible(each.stage), each) for each in split.layers]
    rows.append(_cause_row("logits, whole model", split.logits))
    rows.append(("KL so far, nats", "", *(f"{kl:.1e}" for kl in split.kl)))
    columns = ("error by cause", "total", *names)
    print_table("Own error by cause (size of the step, share of the total)", columns, rows, right=columns[1:])


def _cause_row(label: str, split: CauseSplit) -> tuple[str, ...]:
    return (label, f"{split.total:.1e}", *(f"{cause.relative:.1e} {cause.share:>4.0%}" for cause in split.causes))


def _format_error(cache: CacheDiff) -> float:
    return cache.format.relative


def _layer_rows(view: DiffView) -> Iterable[tuple[str | Text, ...]]:
    for layer in view.layers:
        yield _row(view, visible(layer.name), layer.own.injected, _worst_part(layer), layer.output.propagated, layer)


def _value_rows(view: DiffView) -> Iterable[tuple[str | Text, ...]]:
    for layer in view.layers:
        for value in layer.values:
            flips = layer if value is layer.output else None
            yield _row(view, visible(value.name), value.injected, "", value.propagated, flips)


def _row(
    view: DiffView, name: str, own: Summary, where: str, so_far: Summary, flips: LayerView | None
) -> tuple[str | Text, ...]:
    return (
        name,
        f"{own.worst_row:.1e}",
        error_bar(own.worst_row, view.diff.tolerance),
        where,
        f"{so_far.relative:.1e}",
        spark_line(so_far.by_position),
        "inf" if math.isinf(so_far.snr_db) else f"{so_far.snr_db:.1f}",
        str(len(flips.flips())) if flips is not None and flips.router is not None else "",
    )


def _worst_part(layer: LayerView) -> str:
    return visible(part_of(layer.own)) if layer.own.injected.worst_row else ""


def error_bar(error: float, tolerance: float) -> Text:
    """A bar by the error's logarithm: green well below the tolerance, yellow from a tenth of it on, red above."""
    from rich.text import Text

    level = 0 if error <= tolerance / 10 else 1 if error <= tolerance else 2
    return Text(bar(error), style=_STYLES[level])


def bar(error: float) -> str:
    """For a relative error, by its logarithm: nothing at 1e-8, ten characters at 1 and for what is no number."""
    share = 1.0 if not math.isfinite(error) else _log_share(error, _LEAST, 1.0)
    eighths = round(share * _BAR_LENGTH * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).strip().ljust(_BAR_LENGTH)


def spark_line(errors: Sequence[float]) -> str:
    """A character for each position, or for the largest error of some neighbours.

    By the logarithm, from the largest finite error down to a hundredth of it.
    """
    shown = binned(errors, _POSITIONS)
    largest = max((error for error in shown if math.isfinite(error)), default=0.0)
    shares = [1.0 if not math.isfinite(error) else _log_share(error, largest / 100, largest) for error in shown]
    return "".join(_SPARKS[math.ceil(share * (len(_SPARKS) - 1))] for share in shares)


def _log_share(value: float, low: float, high: float) -> float:
    """Where a value lies between two others on a logarithmic axis, 0 to 1."""
    if value <= low or low <= 0:
        return 0.0
    return min(math.log(value / low) / math.log(high / low), 1.0)


def fault_text(fault: Fault) -> str:
    """One line: what, how much, where, and both values."""
    return (
        f"{visible(fault.name)}: {visible(fault.metric)} {fault.value:.3g}, bound {fault.bound:.3g}; prompt "
        f"{fault.prompt}, position {fault.position}, index {fault.index}: expected {_shown(fault.expected)}, "
        f"got {_shown(fault.got)}"
    )


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else visible(str(value))


def _within(tolerance: float) -> str:
    if math.isinf(tolerance):
        return "not looked for: the precisions differ (give --tolerance)"
    return f"none beyond {tolerance:g}"
