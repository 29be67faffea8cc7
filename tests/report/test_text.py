"""How numbers and strangers' texts are shown."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.report.text import number, percent, sort_key, visible


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (-0.0, "0"), (3.0, "3"), (1234.0, "1,234"), (0.01234, "0.0123"), (1e-5, "1e-5"), (-2.5, "-2.5"),
        (4.56e-7, "4.6e-7"), (1e300, "1e300"), (5e-324, "4.9e-324"), (math.inf, "∞"), (-math.inf, "-∞"),
        (math.nan, "NaN"),
    ],
)  # fmt: skip
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


@given(st.floats(-1e300, 1e300))
def test_numbers_keep_two_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.051)


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0 %"), (1, "100 %"), (0.1234, "12.3 %"), (1e-9, "<0.1 %"), (1 - 1e-9, ">99.9 %"), (math.nan, "NaN %")],
)
def test_shares(share: float, shown: str) -> None:
    assert percent(share) == shown


@given(st.text(st.characters(), max_size=30))
def test_all_of_a_text_can_be_seen(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    shown.encode()
    if text.isprintable():
        assert shown == text


def test_what_hides_or_turns_is_written_out() -> None:
    assert visible("a\u202eb\x00\ud800\n\U000e0001") == r"a\u202eb\u0000\ud800↵\U000e0001"
    assert visible("x" * 500, 10) == "xxxxxxxxx…"


def test_keys_for_sorting_are_javascript_numbers() -> None:
    keys = [sort_key(value) for value in (math.nan, math.inf, -math.inf, 1e-7, 3)]
    assert keys == ["Infinity", "Infinity", "-Infinity", 1e-7, 3]
