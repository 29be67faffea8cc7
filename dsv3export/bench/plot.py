"""Rates as a picture, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsv3export.bench.measure import Case, Measured
from dsv3export.report.matplotlib_figure import PlotFormat, figure_bytes, new_figure

_COLOURS = ("#2a78d6", "#d4561a")


def bench_plot(measured: Mapping[str, Sequence[Measured]], form: PlotFormat) -> bytes:
    """Prefill and decode rates of each engine by case, with the spread of the repeats.

    Raises BackendError without matplotlib.
    """
    cases = [one.case for one in next(iter(measured.values()))]
    figure = new_figure(figsize=(2.5 + 1.6 * len(cases), 6.5), layout="constrained")
    width = 0.8 / len(measured)
    for axes, name in zip(figure.subplots(2, 1, sharex=True), ("prefill", "decode"), strict=True):
        for place, (engine, results) in enumerate(measured.items()):
            rates = [getattr(one, name) for one in results]
            spread = [[rate.median - rate.slowest for rate in rates], [rate.fastest - rate.median for rate in rates]]
            at = [i + (place - (len(measured) - 1) / 2) * width for i in range(len(cases))]
            axes.bar(at, [rate.median for rate in rates], width, yerr=spread, capsize=3, label=engine,
                     color=_COLOURS[place % len(_COLOURS)])  # fmt: skip
        axes.set_title(f"{name}, tokens/s", loc="left")
        axes.grid(axis="y", color="#dfded9")
        axes.set_axisbelow(True)
    axes.set_xticks(range(len(cases)), [_label(case) for case in cases])
    axes.legend(frameon=False)
    return figure_bytes(figure, form)


def _label(case: Case) -> str:
    drafts = f"\ndrafts {case.drafts}" if case.drafts else ""
    return f"batch {case.batch}\nprompt {case.prompt_tokens}{drafts}"
