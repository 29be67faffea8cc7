"""Which decoder layers a slice of Python's kind means."""

from __future__ import annotations

import re

from dsv3export.errors import RequestError

_BOUND = r"(-?\d{1,9})?"
_SLICE = re.compile(rf"{_BOUND}:{_BOUND}(?::{_BOUND})?", re.ASCII)


def sliced_layers(text: str, count: int) -> tuple[int, ...]:
    """The layers that ``range(count)[text]`` holds: ``"3:5"`` -> (3, 4), ``"-1:"`` -> the last, ``"::2"``.

    Raises:
        RequestError: The text is no slice, or no layer is in it, or it runs backwards.
    """
    found = _SLICE.fullmatch(text)
    if found is None:
        fix = f"Write {text}:{int(text) + 1} for that one layer." if re.fullmatch(r"\d{1,9}", text, re.ASCII) else ""
        raise RequestError("layers", expected="START:STOP as in Python, e.g. 3:5", got=repr(text), fix=fix)
    start, stop, step = (None if bound is None else int(bound) for bound in found.groups())
    if step is not None and step < 1:
        raise RequestError("layers", expected="a step of 1 or more, layers run forwards", got=repr(text))
    layers = tuple(range(count)[start:stop:step])
    if not layers:
        raise RequestError("layers", expected=f"some of the model's layers 0 to {count - 1}", got=f"none by {text!r}")
    return layers
