"""A check as an HTML page."""

from __future__ import annotations

import math

from markupsafe import Markup

from dsv3export.golden.results import METRICS, Case, CheckResult
from dsv3export.golden.texts import Group, case_text, groups, place_text
from dsv3export.report.charts.heatmap import HeatScale, heatmap
from dsv3export.report.html import render_page
from dsv3export.report.text import number

_SECTIONS = (("shares", "By layer and prompt"), ("metrics", "Metrics"), ("cases", "All cases"))
_COLUMNS = (
    ("what", "sorted in the order of computation", False),
    ("prompt", "its number, from 0 on", True),
    ("value", "what was measured", True),
    ("bound", "of the profile", True),
    ("share", "of the bound", True),
    ("where", "the place where it is largest, and both values there", False),
)
_METRIC_COLUMNS = (
    ("metric", "sorted in the order of computation", False),
    ("what it is", "", False),
    ("worst", "", True),
    ("bound", "of the profile", True),
    ("cases", "how many were measured", True),
    ("failed", "how many are beyond the bound", True),
)
# What is shown in a table, by what it is sorted, its colour.
Cell = tuple[str, float | str, str]


def check_page(result: CheckResult) -> bytes:
    """One self-contained page, UTF-8."""
    first = result.first_failure
    state = "good" if result.passed else "bad"
    headline = "Every figure is within its bound" if first is None else f"{first.name} is beyond its bound"
    scale = HeatScale.of(_share(case) for case in result.cases)
    return render_page(
        "golden.html",
        title=f"golden check: {headline}",
        sections=_SECTIONS,
        state=state,
        headline=headline,
        facts=_facts(result),
        first="" if first is None else case_text(first),
        shares=_shares(result, scale),
        legend=scale.legend(),
        metric_columns=_METRIC_COLUMNS,
        metric_rows=_metric_rows(result, scale),
        columns=_COLUMNS,
        rows=[_row(place, case, scale) for place, case in enumerate(result.cases)],
    )


def _facts(result: CheckResult) -> list[tuple[str, str]]:
    facts = [("golden", result.golden), ("model", result.model), ("profile", result.profile)]
    facts.append(("cases", f"{len(result.failures):,} of {len(result.cases):,} beyond their bounds"))
    facts += [("note", note) for note in result.notes]
    return facts + [("not compared", reason) for reason in result.skipped]


def _share(case: Case) -> float:
    value = case.measured.value
    if case.bound:
        return value / case.bound
    return 0.0 if value == 0 else math.inf


def _shares(result: CheckResult, scale: HeatScale) -> Markup:
    """How much of their bounds the cases of each layer and family use, for each prompt."""
    by_name: dict[str, dict[int | None, Group]] = {}
    for group in groups(result):
        by_name.setdefault(group.name, {})[group.prompt] = group
    names = list(by_name)
    prompts = sorted({prompt for row in by_name.values() for prompt in row}, key=lambda each: (each is None, each))
    columns = ["all" if prompt is None else str(prompt) for prompt in prompts]

    def worst(row: int, column: int) -> Case | None:
        group = by_name[names[row]].get(prompts[column])
        return None if group is None else max(group.cases, key=_share)

    def tip(row: int, column: int) -> str:
        case = worst(row, column)
        return "" if case is None else case_text(case)

    cells = []
    for row in range(len(names)):
        found = [worst(row, column) for column in range(len(columns))]
        cells.append([None if case is None else _share(case) for case in found])
    label = "The largest share of a bound, by layer or family and prompt"
    return heatmap(names, columns, cells, scale, label=label, tip=tip, bound=1.0, slanted=False)


def _metric_rows(result: CheckResult, scale: HeatScale) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for place, (metric, cases) in enumerate(result.by_metric().items()):
        worst = max(cases, key=_share)
        failed = sum(case.failed for case in cases)
        rows.append(
            [
                (metric, place, ""),
                (METRICS[metric], METRICS[metric], ""),
                (number(worst.measured.value), worst.measured.value, scale.style(_share(worst))),
                (number(worst.bound), worst.bound, ""),
                (f"{len(cases):,}", len(cases), ""),
                (f"{failed:,}", failed, "hx" if failed else ""),
            ]
        )
    return rows


def _row(place: int, case: Case, scale: HeatScale) -> list[Cell]:
    measured, share = case.measured, _share(case)
    return [
        (case.name, place, ""),
        (
            "" if measured.prompt is None else str(measured.prompt),
            -1 if measured.prompt is None else measured.prompt,
            "",
        ),
        (number(measured.value), measured.value, "hx" if case.failed else scale.style(share)),
        (number(case.bound), case.bound, ""),
        (number(share), share, ""),
        (place_text(case), place_text(case), ""),
    ]
