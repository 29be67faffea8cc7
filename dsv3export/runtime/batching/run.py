"""A fixed list of requests, run to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dsv3export.errors import UserError
from dsv3export.runtime.batching.batcher import Batcher
from dsv3export.runtime.batching.prefix_cache import PrefixCache
from dsv3export.runtime.generation import PREFILL_CHUNK, Piece, Request
from dsv3export.runtime.session import Session


def run_requests(
    session: Session,
    requests: Sequence[Request],
    max_slots: int,
    prefill_chunk: int = PREFILL_CHUNK,
    prefixes: PrefixCache | None = None,
) -> Iterator[tuple[int, Piece]]:
    """Generates for all requests, `max_slots` at a time; yields (index of the request, piece) as they come.

    The cache is as large as the requests need. Raises BackendError when a step fails.
    """
    capacity = max(len(request.prompt) + request.max_new_tokens for request in requests)
    batcher = Batcher(session, min(max_slots, len(requests)), capacity, prefill_chunk, prefixes)
    places = {batcher.submit(request): place for place, request in enumerate(requests)}
    while batcher.busy:
        for ticket, outcome in batcher.turn():
            if isinstance(outcome, UserError):
                raise outcome
            yield places[ticket], outcome
