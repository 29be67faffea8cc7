"""The choices of one HTTP request: generations that run at the same time, as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from dsv3export.errors import UserError
from dsv3export.runtime.async_engine import AsyncEngine
from dsv3export.runtime.generation import Piece, Request
from dsv3export.serve.account import Account
from dsv3export.serve.errors import error_detail

DISCONNECTED = "disconnected"
Pieces = AsyncGenerator[tuple[int, Piece], None]  # with the index of the choice


async def choices(engine: AsyncEngine, requests: Sequence[Request], account: Account, timeout: float) -> Pieces:
    """(index of the request, piece) of all requests, as they come; settles the account.

    When one fails, all end with its error; when the reader goes away, all end.
    """
    outcome, said = DISCONNECTED, ""
    try:
        async with aclosing(_merged(engine, requests, timeout)) as merged:
            async for index, piece in merged:
                account.piece(index, piece)
                yield index, piece
        outcome = "ok"
    except UserError as error:
        detail = error_detail(error)[1]
        outcome, said = detail.code or "error", detail.message
        raise
    except Exception as error:
        outcome, said = "internal_error", repr(error)
        raise
    finally:
        account.end(outcome, said)


async def _merged(
    engine: AsyncEngine, requests: Sequence[Request], timeout: float
) -> AsyncGenerator[tuple[int, Piece], None]:
    if len(requests) == 1:  # no tasks in between for what is nearly always the case
        async with aclosing(engine.run(requests[0], timeout)) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def follow(index: int, request: Request) -> None:
        try:
            async with aclosing(engine.run(request, timeout)) as pieces:
                async for piece in pieces:
                    arrived.put_nowait((index, piece))
        except Exception as error:  # noqa: BLE001 - handed on to the one who reads
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(follow(index, request)) for index, request in enumerate(requests)]
    try:
        left = len(requests)
        while left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1].finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
