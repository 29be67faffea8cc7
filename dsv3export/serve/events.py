"""Server-sent events: the parts of an answer as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TypeVar

from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

from dsv3export.errors import UserError
from dsv3export.serve.errors import error_detail
from dsv3export.serve.schemas import ErrorAnswer

_END = "[DONE]"
_PING_SECONDS = 15
_Part = TypeVar("_Part", bound=BaseModel)


async def event_stream(parts: AsyncGenerator[_Part, None]) -> EventSourceResponse:
    """A response of `parts`, after the first of which it has begun.

    An error before that is raised, so that it becomes a status; one after it becomes the last event.
    """
    first = await anext(parts)
    return EventSourceResponse(_events(first, parts), ping=_PING_SECONDS, headers={"Cache-Control": "no-store"})


async def _events(first: _Part, parts: AsyncGenerator[_Part, None]) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        yield _event(first)
        async for part in parts:
            yield _event(part)
    except UserError as error:
        yield _event(ErrorAnswer(error=error_detail(error)[1]))
    finally:
        await parts.aclose()
    yield ServerSentEvent(_END)


def _event(part: BaseModel) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(part.model_dump(exclude_none=True), ensure_ascii=False))
