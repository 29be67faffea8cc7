"""From generated tokens to the text that may be shown: detokenized, cut at stop strings."""

from __future__ import annotations

from dsv3export.runtime.detokenize import Detokenizer
from dsv3export.runtime.stopping import StopStrings


class TextStream:
    """The text of one request. Without a detokenizer (an engine without tokenizer) all text is empty."""

    def __init__(self, detokenizer: Detokenizer | None, stops: StopStrings) -> None:
        self._detokenizer, self._stops = detokenizer, stops

    @property
    def stopped(self) -> bool:
        """True once a stop string is complete."""
        return self._stops.stopped

    def add(self, token_id: int) -> str:
        """The text that may be shown after this token."""
        return self._stops.feed(self._detokenizer.add(token_id)) if self._detokenizer else ""

    def finish(self) -> str:
        """The rest, at the end of the request."""
        rest = self._stops.feed(self._detokenizer.finish()) if self._detokenizer else ""
        return rest + self._stops.flush()
