"""What is remembered of a request: metrics, and a line in the log."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timezone

from dsv3export.runtime.generation import Piece
from dsv3export.serve.metrics import Metrics
from dsv3export.serve.schemas import Usage

LOG = logging.getLogger("dsv3export.serve")


class Account:
    """Of one request, from its arrival to its end. Seconds are of a monotonic clock.

    Args:
        metrics: The server's.
        route: As the API names it.
        name: The answer's id.
    """

    def __init__(self, metrics: Metrics, route: str, name: str) -> None:
        self._metrics, self._route, self._name = metrics, route, name
        self._started = time.monotonic()
        self._last: dict[int, float] = {}
        self._first_seconds: float | None = None
        self._prompt_tokens = self._new_tokens = 0

    def prompt(self, tokens: int) -> None:
        """A prompt of that many tokens was accepted."""
        self._prompt_tokens += tokens
        self._metrics.prompt_tokens.inc(tokens)

    def piece(self, choice: int, piece: Piece) -> None:
        """A choice went on."""
        now = time.monotonic()
        if choice in self._last:
            self._metrics.between_tokens.observe(now - self._last[choice])
        else:
            self._metrics.first_token.observe(now - self._started)
            self._first_seconds = self._first_seconds or now - self._started
        self._last[choice] = now
        self._new_tokens += len(piece.token_ids)
        self._metrics.new_tokens.inc(len(piece.token_ids))

    @property
    def usage(self) -> Usage:
        """So far."""
        total = self._prompt_tokens + self._new_tokens
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._new_tokens, total_tokens=total)

    def end(self, outcome: str, error: str = "") -> None:
        """The request is over; `outcome` is "ok", "disconnected" or an error's code."""
        seconds = time.monotonic() - self._started
        self._metrics.requests.labels(self._route, outcome).inc()
        self._metrics.duration.observe(seconds)
        record: dict[str, object] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "id": self._name,
            "route": self._route,
            "outcome": outcome,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._new_tokens,
            "first_token_seconds": self._first_seconds and round(self._first_seconds, 4),
            "seconds": round(seconds, 4),
        }
        LOG.info(json.dumps(record | ({"error": error} if error else {}), ensure_ascii=False))
