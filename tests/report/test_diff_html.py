"""The page of a comparison: what it holds, and what a real browser makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from dsv3export.report.diff_html import diff_page
from tests.report.diffs import HOSTILE, diff, hostile
from tests.support.browser import browser, opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "diff.html"
    path.write_bytes(diff_page(diff()))
    return path


def test_nothing_is_fetched_and_no_text_is_markup() -> None:
    text = diff_page(hostile()).decode("utf-8")
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "url(" not in text
    assert "<img" not in text
    assert text.count("<script>") == 1
    assert "&lt;img src=x" in text
    assert not set("\x00\u202e") & set(text)


def test_equal_results_give_equal_pages() -> None:
    assert diff_page(diff()) == diff_page(diff())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_opens_in_both_schemes_and_widths(
    chromium: Any, page: Path, scheme: Literal["light", "dark"], width: int
) -> None:
    with opened(chromium, page, scheme, width) as (tab, seen):
        assert seen.requests == [page.as_uri()]
        assert seen.errors == []
        assert "No layer is off by more than 0.1" in tab.inner_text("h1")
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        light = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(243, 243, 240)"
        assert light == (scheme == "light")
        assert tab.locator("main svg").count() == 15


def test_a_hostile_comparison_neither_runs_nor_hides_anything(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_bytes(diff_page(hostile()))
    with opened(chromium, path) as (tab, seen):
        assert seen.requests == [path.as_uri()]
        assert seen.errors == []
        assert tab.title() != "owned"
        assert tab.locator("img").count() == 0
        assert "</script>" in tab.inner_text("h1")


def test_the_security_policy_stops_what_would_get_through(chromium: Any, page: Path) -> None:
    page.write_bytes(page.read_bytes().replace(b"<main", HOSTILE.encode("utf-8", "replace") + b"<main"))
    with opened(chromium, page) as (tab, seen):
        assert tab.title() != "owned"
        assert any("Content Security Policy" in error for error in seen.errors)


def test_tables_sort_by_click_and_by_key(chromium: Any, page: Path) -> None:
    with opened(chromium, page) as (tab, seen):
        table = tab.locator("#layers table")
        names = lambda: table.locator("tbody th").all_inner_texts()  # noqa: E731
        order = names()
        assert order == ["embed", "layers.0", "layers.1", "layers.2", "layers.3", "head"]
        button = table.get_by_role("button", name="so far", exact=True)
        button.click()
        assert names() == order[::-1]
        assert table.locator("thead th").nth(3).get_attribute("aria-sort") == "descending"
        button.press("Enter")
        assert names() == order
        assert seen.errors == []


def test_infinity_sorts_above_all(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_bytes(diff_page(hostile()))
    with opened(chromium, path) as (tab, _):
        table = tab.locator("#values table")
        table.get_by_role("button", name="so far", exact=True).click()
        shown = table.locator("tbody tr td:nth-child(5)").all_inner_texts()
        assert set(shown[:2]) == {"∞", "NaN"}
        assert shown[2] == "1e300"
        assert shown[-1] == "0"


def test_values_are_filtered_and_panes_switched(chromium: Any, page: Path) -> None:
    with opened(chromium, page) as (tab, _):
        tab.get_by_label("Show names with").fill("EXPERTS")
        assert tab.locator("#values tbody tr:visible").count() == 4
        first, second = tab.locator("#parts .pane").nth(0), tab.locator("#parts .pane").nth(1)
        assert (first.is_visible(), second.is_visible()) == (True, False)
        tab.get_by_label("error so far", exact=True).check()
        assert (first.is_visible(), second.is_visible()) == (False, True)


def test_causes_caches_and_drafts_have_sections(chromium: Any, page: Path) -> None:
    with opened(chromium, page) as (tab, seen):
        links = tab.locator("nav a").all_inner_texts()
        assert [link for link in links if link in ("Causes", "Latent caches", "MTP drafts")] == [
            "Causes", "Latent caches", "MTP drafts",
        ]  # fmt: skip
        table = tab.locator("#causes table")
        assert table.locator("thead th").count() == 10
        assert table.locator("tbody th").all_inner_texts()[-1] == "logits, whole model"
        assert "40" in table.locator("tbody tr").first.locator("td").nth(2).inner_text()
        assert tab.locator("#causes .line").count() == 4
        panes = tab.locator("#caches .pane")
        assert [panes.nth(place).is_visible() for place in range(3)] == [True, False, False]
        tab.get_by_label("format alone", exact=True).check()
        assert [panes.nth(place).is_visible() for place in range(3)] == [False, False, True]
        panes.nth(2).locator("rect").first.hover()
        assert tab.inner_text("#tip") == "layer 0, position 0\nformat alone: 5e-4"
        assert tab.locator("#drafts tbody tr").count() == 1
        assert seen.errors == []


def test_what_was_not_compared_has_no_section(tmp_path: Path) -> None:
    text = diff_page(replace(diff(), causes=None, caches=(), drafts=None)).decode("utf-8")
    assert not re.search(r'id="(causes|caches|drafts)"|#(causes|caches|drafts)', text)
    assert 'id="routers"' in text


def test_a_mark_says_what_it_is(chromium: Any, page: Path) -> None:
    with opened(chromium, page) as (tab, _):
        tab.locator("#parts .pane").nth(0).locator("rect").nth(0).hover()
        assert tab.inner_text("#tip").startswith("layers.0.self_attn.q_a_proj\nown error: ")
        tab.keyboard.press("Escape")
        assert tab.locator("#tip").is_hidden()


def test_a_large_model_stays_small_and_readable(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    path.write_bytes(diff_page(replace(diff(layers=61, positions=8192), tolerance=float("inf"))))
    assert path.stat().st_size < 3_000_000
    with opened(chromium, path) as (tab, seen):
        assert seen.errors == []
        assert "different precision" in tab.inner_text("h1")
        assert tab.locator("#positions svg").first.bounding_box()["height"] < 1200
