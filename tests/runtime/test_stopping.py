from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dsv3export.runtime.stopping import StopStrings

TEXT = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stream = StopStrings(stops)
    shown = "".join(stream.feed(piece) for piece in pieces)
    return shown + stream.flush(), stream.stopped


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """By definition: the shortest beginning of the text that ends with a stop string, without that (the longest)."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=6))
def test_the_result_does_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(edge, len(text)) for edge in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert feed(stops, pieces) == cut(text, stops)


@given(TEXT, STOPS)
def test_no_text_is_shown_before_it_is_sure(text: str, stops: list[str]) -> None:
    stream, shown = StopStrings(stops), ""
    final, _ = cut(text, stops)
    for char in text:
        shown += stream.feed(char)
        assert final.startswith(shown)


def test_text_is_held_back_only_as_long_as_needed() -> None:
    stream = StopStrings(["</s>"])
    assert [stream.feed(piece) for piece in ("a<", "/", "s", "x<", "b")] == ["a", "", "", "</sx", "<b"]
    assert not stream.stopped and stream.flush() == ""


def test_nothing_comes_after_a_stop_string() -> None:
    stream = StopStrings(["\n\n"])
    assert stream.feed("one\n") + stream.feed("\ntwo") == "one"
    assert stream.stopped and stream.feed("three") + stream.flush() == ""
