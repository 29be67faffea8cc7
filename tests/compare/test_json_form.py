"""Results as JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.compare.diff_file import diff_to_bytes, read_diff
from dsv3export.compare.json_form import from_json, to_json
from dsv3export.errors import RequestError
from tests.report.diffs import diff, hostile


@dataclass(frozen=True)
class Inner:
    number: float
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    many: tuple[Inner, ...]
    counts: tuple[int, ...]
    flag: bool
    place: Any


inners = st.builds(Inner, st.floats(allow_nan=False), st.none() | st.text())


@given(st.builds(Outer, st.none() | inners, st.lists(inners).map(tuple), st.lists(st.integers(-9, 9)).map(tuple),
                 st.booleans(), st.floats(allow_nan=False)))  # fmt: skip
def test_there_and_back(value: Outer) -> None:
    written = json.dumps(to_json(value), allow_nan=False)
    assert from_json(Outer, json.loads(written), "x") == value


def test_what_is_no_number_is_a_word() -> None:
    assert to_json([math.inf, -math.inf, math.nan, 1.0]) == ["Infinity", "-Infinity", "NaN", 1.0]
    assert math.isnan(from_json(Inner, {"number": "NaN"}, "x").number)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "x: expected an object, got []"),
        ({}, "x: expected the key 'inner'"),
        ({"inner": {"number": "nan"}}, "x.inner.number: expected a number"),
        ({"inner": {"number": True}}, "x.inner.number"),
        ({"inner": {"number": 10**400}}, "x.inner.number"),
        ({"many": 3}, "x.many: expected an array, got 3"),
        ({"many": [{"number": 1}, {"number": 1, "name": 2}]}, "x.many[1].name: expected a text, got 2"),
        ({"counts": [1, 2.5]}, "x.counts[1]: expected an integer, got 2.5"),
        ({"counts": [1 << 80]}, "x.counts[0]"),
        ({"flag": 1}, "x.flag: expected true or false, got 1"),
    ],
)
def test_another_type_is_named(value: Any, says: str) -> None:
    right = {"inner": None, "many": [], "counts": [], "flag": True, "place": 0}
    given = right | value if value else value
    with pytest.raises(RequestError) as refused:
        from_json(Outer, given, "x")
    assert says in str(refused.value)


def test_unknown_keys_are_left_out() -> None:
    assert from_json(Inner, {"number": 1, "newer": []}, "x") == Inner(1.0)


def test_a_comparison_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "diff.json"
    made = diff()
    path.write_bytes(diff_to_bytes(made))
    assert read_diff(path) == made
    path.write_bytes(diff_to_bytes(hostile()))
    assert repr(read_diff(path).values) == repr(hostile().values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "other"}, "diff --json"),
        ({"version": 2}, "version: expected 1, got 2"),
        ({"values": []}, "values: expected at least one"),
        ({"tolerance": None}, "tolerance: expected a number"),
    ],
)
def test_other_files_are_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "diff.json"
    path.write_text(json.dumps(json.loads(diff_to_bytes(diff())) | change), encoding="utf-8")
    with pytest.raises(RequestError, match=says):
        read_diff(path)


def test_a_histogram_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "diff.json"
    made = diff()
    logits = replace(made.logits, kl_histogram=replace(made.logits.kl_histogram, counts=(1,)))
    path.write_bytes(diff_to_bytes(replace(made, logits=logits)))
    with pytest.raises(RequestError, match="kl_histogram"):
        read_diff(path)
