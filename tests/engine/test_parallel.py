"""Layouts, and the plan of an engine for several ranks."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.engine.parallel import Layout, Parallel, RankPlan, Traffic, parse_parallel, plan_digest
from dsv3export.engine.typed_json import parse_json
from dsv3export.errors import EngineError

LAYOUTS = st.builds(Layout, *(st.integers(1, 6) for _ in range(3)))


@given(LAYOUTS)
def test_coordinates_name_each_rank_once(layout: Layout) -> None:
    places = [layout.coordinates(rank) for rank in range(layout.world)]
    assert len(set(places)) == layout.world
    assert [layout.rank_of(*place) for place in places] == list(range(layout.world))


@given(LAYOUTS, st.data())
def test_groups(layout: Layout, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, layout.world - 1))
    p, e, _ = layout.coordinates(rank)
    for group, same in (("tensor", (p, e)), ("stage", (p,))):
        members = layout.group(rank, group)  # type: ignore[arg-type]
        assert rank in members
        assert set(members) == {r for r in range(layout.world) if layout.coordinates(r)[: len(same)] == same}
    following, before = layout.next(rank), layout.previous(rank)
    if following is not None:
        assert layout.previous(following) == rank
        assert layout.coordinates(following)[1:] == layout.coordinates(rank)[1:]
    assert (before is None) == (p == 0)
    assert layout.coordinates(layout.logits_rank) == (layout.pp - 1, 0, 0)


def traffic() -> Traffic:
    return Traffic("all_reduce", "stage", 4, 3, 100, "token")


def test_sent_bytes() -> None:
    assert traffic().payload_per_row == 300
    assert traffic().sent_per_row == Fraction(2 * 3 * 300, 4)
    assert Traffic("gather", "stage", 4, 1, 100, "logit", sends=False).sent_per_row == 0
    assert Traffic("send", None, 2, 1, 100, "token").sent_per_row == 100


def parallel() -> Parallel:
    plans = tuple(RankPlan(rank, (0, 4), 10, 20, (traffic(),)) for rank in range(2))
    return Parallel(Layout(tp=2), 1, plan_digest(Layout(tp=2), plans, "key"), plans)


def parsed(document: Any) -> Parallel:
    return parse_parallel(parse_json(json.dumps(document).encode(), "parallel"))


def test_round_trip() -> None:
    assert parsed(parallel().to_json()) == parallel()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pp", 0, "pp: expected an integer from 1"),
        ("tp", 3, "ranks: expected the 3 ranks of pp 1 x tp 3 x ep 1 in order, got 2 entries"),
        ("rank", 2, "rank: expected an integer from 0 to 1"),
        ("digest", "abc", "digest: expected 64"),
        ("ranks", {}, "ranks: expected an array"),
    ],
)
def test_bad(key: str, value: object, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        parsed({**parallel().to_json(), key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("op", "all_to_all"), ("group", "world"), ("ranks", 0), ("row", "word"), ("sends", 1)]
)
def test_bad_traffic(key: str, value: object) -> None:
    document = json.loads(json.dumps(parallel().to_json()))
    document["ranks"][0]["traffic"][0][key] = value
    with pytest.raises(EngineError, match=rf"traffic\[0\].{key}"):
        parsed(document)
