"""A fixed list of requests, run to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dsv3export.errors import UserError
from dsv3export.runtime.batching.batcher import Batcher
from dsv3export.runtime.generation import Piece, Request


def longest(requests: Sequence[Request]) -> int:
    """Tokens of the longest of them, prompt and new ones: the capacity that they need."""
    return max(len(request.prompt) + request.max_new_tokens for request in requests)


def run_requests(batcher: Batcher, requests: Sequence[Request]) -> Iterator[tuple[int, Piece]]:
    """Generates for all requests; yields (index of the request, piece) as they come.

    Raises BackendError when a step fails.
    """
    places = {batcher.submit(request): place for place, request in enumerate(requests)}
    while batcher.busy:
        for ticket, outcome in batcher.turn():
            if isinstance(outcome, UserError):
                raise outcome
            yield places[ticket], outcome
