"""Stop strings: text is cut before the first one, also when it spans tokens, and nothing of it is ever shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Filters a stream of text. No stop string may be empty.

    Of several stop strings the one that is complete first counts (of those the longest): so the result does not
    depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Takes more text; returns what may be shown now. Sets `stopped` once a stop string is complete."""
        if self.stopped:
            return ""
        searched = self._held + text
        found = [(searched.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in searched]
        if found:
            end, negative_length = min(found)
            self.stopped, self._held = True, ""
            return searched[: end + negative_length]
        held = max((_overlap(searched, stop) for stop in self._stops), default=0)
        cut = len(searched) - held
        self._held = searched[cut:]
        return searched[:cut]

    def flush(self) -> str:
        """At the end of the stream: the text that was held back in case a stop string would follow."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
