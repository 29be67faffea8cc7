from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.engine.numbered_names import shortened


def spelled_out(names: tuple[str, ...]) -> tuple[str, ...]:
    """As a shell reads it."""
    found: list[str] = []
    for name in names:
        parts = re.split(r"\{(\d+)\.\.(\d+)\}", name)
        ranges = [range(int(a), int(b) + 1) for a, b in zip(parts[1::3], parts[2::3], strict=True)]
        found += [
            "".join(f"{text}{number}" for text, number in zip(parts[::3], (*numbers, ""), strict=True))
            for numbers in product(*ranges)
        ]
    return tuple(found)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ((), ()),
        (("a.weight",), ("a.weight",)),
        (("e.0.w", "e.1.w", "e.2.w"), ("e.{0..2}.w",)),
        (("e.9.w", "e.10.w"), ("e.{9..10}.w",)),
        (("l.3.e.0.w", "l.3.e.1.w", "l.4.e.0.w", "l.4.e.1.w"), ("l.3.e.{0..1}.w", "l.4.e.{0..1}.w")),
        (("l.0.e.0", "l.1.e.0", "l.1.e.1"), ("l.{0..1}.e.0", "l.1.e.1")),
        (("e.0.up", "e.1.down"), ("e.0.up", "e.1.down")),
        (("e.1.w", "e.0.w"), ("e.1.w", "e.0.w")),
        (("e.01.w", "e.2.w"), ("e.01.w", "e.2.w")),
        (("w1", "w2"), ("w1", "w2")),
        (("a.1", "a.1"), ("a.1", "a.1")),
        (("7", "8"), ("{7..8}",)),
    ],
)
def test_runs(names: tuple[str, ...], short: tuple[str, ...]) -> None:
    assert shortened(names) == short


@given(st.lists(st.from_regex(r"[a-c](\.[0-3]){1,3}(\.w)?", fullmatch=True), max_size=12))
def test_nothing_is_lost(names: list[str]) -> None:
    assert spelled_out(shortened(names)) == tuple(names)
