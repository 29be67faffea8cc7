"""`/v1/chat/completions`: messages, put into a prompt by the checkpoint's template."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from dsv3export.errors import RequestError
from dsv3export.runtime.generation import Piece, Request, joined
from dsv3export.serve.account import Account
from dsv3export.serve.errors import RESPONSES
from dsv3export.serve.events import event_stream
from dsv3export.serve.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    Delta,
)
from dsv3export.serve.server_state import ServerState, options_of, state_of
from dsv3export.serve.work import Pieces, choices

router = APIRouter()
ROUTE = "/v1/chat/completions"


@router.post(ROUTE, response_model=ChatCompletion, responses=RESPONSES)
async def chat_completions(asked: ChatRequest, http: HttpRequest) -> ChatCompletion | Response:
    """Answer the last message."""
    state = state_of(http)
    # Long prompts take a while: the other clients' tokens go out meanwhile.
    requests = await asyncio.to_thread(_requests, state, asked)
    name, account = state.account(ROUTE, "chatcmpl")
    account.prompt(len(requests[0].prompt))
    created = int(time.time())
    pieces = choices(state.engine, requests, account, state.settings.timeout)
    if asked.stream:
        include = asked.stream_options is not None and asked.stream_options.include_usage
        frame = ChatChunk(id=name, created=created, model=state.settings.model, choices=[])
        return await event_stream(_chunks(state, frame, pieces, account, include))
    collected: list[list[Piece]] = [[] for _ in requests]
    async with aclosing(pieces):
        async for index, piece in pieces:
            collected[index].append(piece)
    answers = [_choice(state, index, joined(*pair)) for index, pair in enumerate(zip(requests, collected, strict=True))]
    return ChatCompletion(id=name, created=created, model=state.settings.model, choices=answers, usage=account.usage)


def _requests(state: ServerState, asked: ChatRequest) -> list[Request]:
    """`n` requests of one prompt. Raises RequestError."""
    if state.template is None:
        raise RequestError(
            "chat", expected="an engine with a chat template", got="none",
            fix="Use /v1/completions, or put a chat template into the checkpoint and rebuild the engine.",
        )  # fmt: skip
    logprobs = None
    if asked.logprobs:
        logprobs = asked.top_logprobs or 0
    elif asked.top_logprobs:
        raise RequestError("top_logprobs", expected="logprobs to be true", got="logprobs not asked for")
    messages = [_plain(message) for message in asked.messages]
    prompt = state.template.render(messages, **(asked.chat_template_kwargs or {}))
    limit = asked.max_completion_tokens or asked.max_tokens
    how = options_of(asked, logprobs)
    return [state.engine.engine.requests.make(prompt, index, limit, **how) for index in range(asked.n)]


def _plain(message: ChatMessage) -> dict[str, Any]:
    """A message as templates know it: its content is one text."""
    plain = message.model_dump(exclude_none=True)
    if isinstance(message.content, list):
        plain["content"] = "".join(part.text for part in message.content)
    return plain


def _choice(state: ServerState, index: int, result: Any) -> ChatChoice:
    logprobs = None if result.logprobs is None else state.texts.chat(result.logprobs)
    message = AssistantMessage(content=result.text)
    return ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=result.finish_reason)


async def _chunks(
    state: ServerState,
    frame: ChatChunk,
    pieces: Pieces,
    account: Account,
    include: bool,
) -> AsyncGenerator[ChatChunk, None]:
    begun: set[int] = set()
    async for index, piece in pieces:
        delta = Delta(role=None if index in begun else "assistant", content=piece.text)
        begun.add(index)
        logprobs = None if piece.logprobs is None else state.texts.chat(piece.logprobs)
        choice = ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=piece.finish_reason)
        yield frame.model_copy(update={"choices": [choice]})
    if include:
        yield frame.model_copy(update={"choices": [], "usage": account.usage})
