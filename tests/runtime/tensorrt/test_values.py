"""Where values lie: none over another that is needed at the same time, in little more than the most that is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dsv3export.engine.program import Call, Kind, Limits, Port, Program
from dsv3export.runtime.device import ALIGNMENT, aligned
from dsv3export.runtime.tensorrt.values import plan_values, port_bytes, port_shape

SIZES = {"B": 3, "S": 4, "R": 2}


def chain(widths: list[int], kept: list[bool]) -> Program:
    """Calls that each turn v<i> into v<i+1>; where `kept`, the result goes out as well."""
    kinds, calls = {}, []
    for place, (before, after) in enumerate(pairwise(widths)):
        x, y = Port("x", "F32", ("B", "S", before)), Port("y", "BF16", ("B*S", after))
        kinds[f"k{place}"] = Kind({}, (x,), (y,), (), {})
        calls.append(Call(f"k{place}", "", {"x": f"v{place}"}, {"y": f"v{place + 1}"}, {}))
    outputs = tuple(f"v{place}" for place, keep in enumerate(kept, 1) if keep)
    return Program("tensorrt", "1", "fp32", "F32", Limits(3, 0, 4, 8), (), kinds, tuple(calls), ("v0",), outputs)


@given(st.lists(st.tuples(st.integers(1, 500), st.booleans()), min_size=2, max_size=12))
def test_values_that_meet_do_not_overlap(values: list[tuple[int, bool]]) -> None:
    program = chain([width for width, _ in values], [keep for _, keep in values[1:]])
    plan = plan_values(program, SIZES)
    spans = {}
    for place, (width, _) in enumerate(values):
        name, end = f"v{place}", len(program.calls) if f"v{place}" in program.outputs else min(place, len(values) - 2)
        nbytes = 3 * 4 * width * (4 if place < len(values) - 1 else 2)  # as an input it is float32
        spans[name] = (plan.offsets[name], plan.offsets[name] + nbytes, max(0, place - 1), end)
        assert plan.offsets[name] % ALIGNMENT == 0 and plan.offsets[name] + nbytes <= plan.nbytes
    for one, (begin, stop, first, last) in spans.items():
        for other, (begin2, stop2, first2, last2) in spans.items():
            if one < other and first <= last2 and first2 <= last:
                assert stop <= begin2 or stop2 <= begin, (one, other)


def test_a_long_chain_takes_two_places() -> None:
    plan = plan_values(chain([100] * 20, [False] * 19), SIZES)
    assert plan.nbytes == 2 * aligned(3 * 4 * 100 * 4)


def test_shapes_and_bytes() -> None:
    assert port_shape(Port("x", "F32", ("B*S", "R", 5)), SIZES) == (12, 2, 5)
    assert port_bytes(Port("x", "BF16", ("B", 5)), SIZES) == 30
    assert port_bytes(Port("x", "I4", ("B", 5)), SIZES) == 8
