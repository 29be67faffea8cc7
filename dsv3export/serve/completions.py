"""`/v1/completions`: prompts as they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from dsv3export.errors import RequestError
from dsv3export.runtime.generation import Piece, Request, joined
from dsv3export.runtime.request_maker import Prompt
from dsv3export.serve.account import Account
from dsv3export.serve.errors import RESPONSES
from dsv3export.serve.events import event_stream
from dsv3export.serve.schemas import Completion, CompletionChoice, CompletionRequest
from dsv3export.serve.server_state import ServerState, options_of, state_of
from dsv3export.serve.work import Pieces, choices

router = APIRouter()
ROUTE = "/v1/completions"
MAX_PROMPTS = 64


@router.post(ROUTE, response_model=Completion, responses=RESPONSES)
async def completions(asked: CompletionRequest, http: HttpRequest) -> Completion | Response:
    """Continue a prompt, or each of several."""
    state = state_of(http)
    # Long prompts take a while: the other clients' tokens go out meanwhile.
    requests = await asyncio.to_thread(_requests, state, asked)
    name, account = state.account(ROUTE, "cmpl")
    for request in requests[:: asked.n]:
        account.prompt(len(request.prompt))
    frame = Completion(id=name, created=int(time.time()), model=state.settings.model, choices=[])
    pieces = choices(state.engine, requests, account, state.settings.timeout)
    if asked.stream:
        include = asked.stream_options is not None and asked.stream_options.include_usage
        return await event_stream(_chunks(state, frame, pieces, account, include))
    collected: list[list[Piece]] = [[] for _ in requests]
    async with aclosing(pieces):
        async for index, piece in pieces:
            collected[index].append(piece)
    for index, (request, parts) in enumerate(zip(requests, collected, strict=True)):
        result = joined(request, parts)
        logprobs = None if result.logprobs is None else state.texts.completion(result.logprobs)
        frame.choices.append(
            CompletionChoice(index=index, text=result.text, logprobs=logprobs, finish_reason=result.finish_reason)
        )
    frame.usage = account.usage
    return frame


def _requests(state: ServerState, asked: CompletionRequest) -> list[Request]:
    """Choices in the order of the prompts, `n` for each. Raises RequestError."""
    prompts: list[Prompt]
    if isinstance(asked.prompt, str) or (asked.prompt and isinstance(asked.prompt[0], int)):
        prompts = [cast("Prompt", asked.prompt)]
    else:
        prompts = list(cast("list[Prompt]", asked.prompt))
    if not 1 <= len(prompts) * asked.n <= MAX_PROMPTS:
        raise RequestError(
            "prompt", expected=f"1 to {MAX_PROMPTS} choices, prompts times n", got=str(len(prompts) * asked.n)
        )
    how = options_of(asked, asked.logprobs)
    make = state.engine.engine.requests.make
    return [make(prompt, index, asked.max_tokens, **how) for prompt in prompts for index in range(asked.n)]


async def _chunks(
    state: ServerState,
    frame: Completion,
    pieces: Pieces,
    account: Account,
    include: bool,
) -> AsyncGenerator[Completion, None]:
    offsets: dict[int, int] = {}
    async for index, piece in pieces:
        logprobs = None
        if piece.logprobs is not None:
            logprobs = state.texts.completion(piece.logprobs, offsets.get(index, 0))
            offsets[index] = offsets.get(index, 0) + sum(len(token) for token in logprobs.tokens)
        choice = CompletionChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=piece.finish_reason)
        yield frame.model_copy(update={"choices": [choice]})
    if include:
        yield frame.model_copy(update={"choices": [], "usage": account.usage})
