"""What every request passes before it is read: its size and its key."""

from __future__ import annotations

import secrets

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv3export.serve.errors import error_answer


class BodyLimit:
    """Answers 413 to bodies above `max_bytes`, whatever their header says."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        expected = f"expected a body of at most {self._max_bytes} bytes"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await error_answer(413, expected, code="body_too_large")(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, expected)
            return message

        await self._app(scope, counted, send)


class ApiKey:
    """Answers 401 to requests below /v1 that do not carry the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, b"Bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._expected):
                answer = error_answer(
                    401, "expected the header Authorization: Bearer KEY with the server's key", code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)
