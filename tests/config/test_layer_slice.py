"""`--layers`: slices as Python has them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dsv3export.config.layer_slice import sliced_layers
from dsv3export.errors import RequestError

BOUNDS = st.none() | st.integers(-70, 70)


@given(BOUNDS, BOUNDS, st.none() | st.integers(1, 9), st.integers(1, 65))
def test_slices_are_pythons(start: int | None, stop: int | None, step: int | None, count: int) -> None:
    expected = tuple(range(count))[start:stop:step]
    assume(expected)
    first, last, every = ("" if bound is None else str(bound) for bound in (start, stop, step))
    assert sliced_layers(f"{first}:{last}" + (f":{every}" if every else ""), count) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", r"expected START:STOP as in Python, e.g. 3:5, got '3'. Write 3:4 for that one layer."),
        ("-1", r"expected START:STOP as in Python, e.g. 3:5, got '-1'$"),
        ("", r"expected START:STOP .*got ''$"),
        ("3-5", r"expected START:STOP .*got '3-5'"),
        ("3:5,7", r"expected START:STOP .*got '3:5,7'"),
        (" 3:5", r"expected START:STOP"),
        ("٣:٥", r"expected START:STOP"),
        ("9999999999:", r"expected START:STOP"),
        ("1:2:3:4", r"expected START:STOP"),
        ("61:", r"expected some of the model's layers 0 to 60, got none by '61:'"),
        ("5:3", r"expected some of the model's layers 0 to 60, got none by '5:3'"),
        ("::0", r"expected a step of 1 or more, layers run forwards, got '::0'"),
        ("::-1", r"expected a step of 1 or more, layers run forwards, got '::-1'"),
    ],
)
def test_what_is_no_slice_is_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=rf"^layers: {said}"):
        sliced_layers(text, 61)
