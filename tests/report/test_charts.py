"""Geometry of charts: every mark lies in its place, whatever the numbers are."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.report.charts.bars import Part, bar_chart
from dsv3export.report.charts.heatmap import HeatScale, heatmap
from dsv3export.report.charts.lines import Line, line_chart
from dsv3export.report.charts.scale import LogScale
from dsv3export.report.charts.svg import element, text

errors = st.floats(min_value=0) | st.just(math.nan)
lists = st.lists(errors, min_size=1, max_size=80)


@given(lists)
def test_a_log_scale_keeps_the_order(values: list[float]) -> None:
    scale = LogScale.of(values, 300, 20)
    ordered = [scale.at(value) for value in sorted(value for value in values if not math.isnan(value))]
    assert all(a >= b for a, b in pairwise(ordered))
    assert all(20 <= y <= 300 for y in ordered)
    ticks = [y for y, _ in scale.ticks()]
    assert ticks == sorted(ticks, reverse=True)
    assert 1 <= len(ticks) <= 10


def test_zero_and_infinity_have_places_of_their_own() -> None:
    scale = LogScale.of([0.0, 1e-3, 1.0, math.inf], 100, 0)
    assert [label for _, label in scale.ticks()] == ["0", "1e-3", "1e-2", "1e-1", "1", "∞, NaN"]
    assert scale.at(0.0) == 100 > scale.at(1e-3) > scale.at(1.0) > scale.at(math.nan) == 0


@given(lists)
def test_charts_are_xml_without_nan(values: list[float]) -> None:
    names = [f"<{i}>" for i in range(len(values))]
    chart = line_chart([Line("a & b", "a", values)], names, "x", "y", bound=0.1, label="<&>")
    grid = heatmap(names, ["<c>"], [[value] for value in values], HeatScale.of(values), label="g",
                   tip=lambda row, column: f"{names[row]}\n{column}")  # fmt: skip
    for drawn in (chart, grid):
        root = ElementTree.fromstring(drawn)  # what our own code has made
        for mark in root.iter():
            for name, value in mark.attrib.items():
                if name not in ("data-tip", "aria-label"):
                    assert not re.search(r"\b(nan|inf)\b", value), (name, value)


def test_bars_stand_on_each_other() -> None:
    chart = bar_chart([Part("a", "a", (3, 0)), Part("b", "b", (1, 4))], ["p", "q"], ["p", ""], "x", "y", label="l")
    root = ElementTree.fromstring(chart)
    bars = {(mark.get("class"), mark.get("x")): mark for mark in root if (mark.get("class") or "").startswith("bar")}
    assert len(bars) == 3
    first = [mark for (_, x), mark in bars.items() if x == min(x for _, x in bars)]
    below, above = (next(mark for mark in first if mark.get("class") == f"bar {style}") for style in "ab")
    bottom = float(above.get("y", "")) + float(above.get("height", ""))
    assert bottom == pytest.approx(float(below.get("y", "")), abs=1e-3)
    assert float(below.get("height", "")) == pytest.approx(3 * float(above.get("height", "")), rel=1e-3)


@given(st.lists(st.floats(1e-12, 1e3), min_size=1), st.floats(1e-12, 1e3), st.floats(1e-12, 1e3))
def test_larger_errors_have_stronger_colours(known: list[float], a: float, b: float) -> None:
    scale = HeatScale.of(known)
    assert scale.style(min(a, b)) <= scale.style(max(a, b))
    assert scale.style(max(known)) in ("h8", "h9")
    assert scale.style(0.0) == "h0"
    assert scale.style(math.nan) == scale.style(math.inf) == "hx"


def test_attributes_and_texts_are_escaped() -> None:
    assert element("a", ["<b>"], data_tip="\"'><x>\ny", class_=None) == (
        '<a data-tip="&#34;&#39;&gt;&lt;x&gt;\ny">&lt;b&gt;</a>'
    )
    assert text(1, 2.5, "\u202e") == '<text x="1" y="2.5">\\u202e</text>'
