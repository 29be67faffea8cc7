from __future__ import annotations

import pytest

from dsv3export.runtime.batching.schedule import PrefillTurns, decode_ranges


@pytest.mark.parametrize(
    ("slots", "runs"),
    [
        ([], []),
        ([0, 1, 2], [range(3)]),
        ([0, 2, 5], [range(6)]),
        ([0, 4], [range(5)]),
        ([0, 5], [range(1), range(5, 6)]),
    ],
)
def test_small_gaps_are_bridged(slots: list[int], runs: list[range]) -> None:
    assert decode_ranges(slots) == runs


def test_turns_go_round_within_the_budget() -> None:
    turns, sizes = PrefillTurns(), {1: 30, 2: 5, 3: 5}
    for slot in sizes:
        turns.add(slot)
    assert turns.turn(sizes.__getitem__, 32) == [1]
    assert turns.turn(sizes.__getitem__, 32) == [2, 3]
    assert turns.turn(sizes.__getitem__, 100) == [1, 2, 3]
    turns.remove(2)
    turns.remove(9)
    assert len(turns) == 2 and turns.turn(sizes.__getitem__, 1) == [1]
    assert PrefillTurns().turn(sizes.__getitem__, 1) == []
