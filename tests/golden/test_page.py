"""The page of a check, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.golden.page import check_page
from tests.golden.results import HOSTILE, result
from tests.support.browser import browser, opened


def test_the_page_says_what_failed_and_asks_for_nothing(tmp_path: Path) -> None:
    pages = {"bad": result(2), "good": result(0), "hostile": result(1, model=HOSTILE, golden=HOSTILE)}
    for name, checked in pages.items():
        (tmp_path / f"{name}.html").write_bytes(check_page(checked))
    assert check_page(result(2)) == check_page(result(2))
    with browser() as chromium:
        for name, checked in pages.items():
            path = tmp_path / f"{name}.html"
            with opened(chromium, path) as (tab, seen):
                assert (seen.requests, seen.errors) == ([path.as_uri()], [])
                passed = "Passed." if checked.passed else "Failed."
                assert tab.inner_text("h1").strip().startswith(passed) or passed in tab.locator("h1").text_content()
                assert tab.locator("#cases tbody tr").count() == len(checked.cases)
                assert tab.locator("#shares rect.over").count() == len(checked.failures)
                assert tab.locator("img").count() == 0
                assert tab.evaluate("document.documentElement.scrollWidth") == 1200
        with opened(chromium, tmp_path / "bad.html") as (tab, _):
            assert "layers.0: layers.error 0.5, bound 0.1; prompt 1, position 7, index 3" in tab.inner_text(".fault")
            table = tab.locator("#cases table")
            table.get_by_role("button", name="share", exact=True).click()
            assert table.locator("tbody th").first.inner_text() in ("layers.0: layers.error", "layers.1: layers.error")


@pytest.mark.parametrize("failing", [0, 3])
def test_what_is_no_number_is_shown(failing: int) -> None:
    from dataclasses import replace

    checked = result(failing)
    case = checked.cases[1]
    broken = replace(case, measured=replace(case.measured, value=float("nan")))
    page = check_page(replace(checked, cases=(broken, *checked.cases[2:]))).decode("utf-8")
    assert "NaN" in page
    assert "is beyond its bound" in page
