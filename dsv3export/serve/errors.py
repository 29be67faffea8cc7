"""Every refusal as OpenAI's clients expect it: a JSON object `error`, and the status that they act on."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dsv3export.errors import RequestError, TokenizerError, UserError
from dsv3export.runtime.async_engine import TooSlowError
from dsv3export.runtime.batching.service import BusyError, ClosedError
from dsv3export.runtime.distributed.faults import JobFault
from dsv3export.serve.schemas import ErrorAnswer, ErrorDetail

_RETRY_SECONDS = "1"
_STATUS: tuple[tuple[type[UserError], int, str], ...] = (
    (BusyError, 429, "rate_limit_exceeded"),
    (JobFault, 503, "engine_failing"),
    (ClosedError, 503, "shutting_down"),
    (TooSlowError, 504, "timeout"),
    (RequestError, 400, "invalid_request"),
    (TokenizerError, 400, "no_tokenizer"),
)
_MEANING = {
    400: "The request is not what it should be.",
    401: "The API key is missing or wrong.",
    413: "The body is too large.",
    429: "Too many requests wait.",
    503: "The server is shutting down, or one of its ranks is gone.",
    504: "The request took too long.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning} for status, meaning in _MEANING.items()
}


def error_detail(error: UserError) -> tuple[int, ErrorDetail]:
    """The HTTP status and what the client is told."""
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return status, ErrorDetail(message=str(error), type=_type(status), code=code)
    return 500, ErrorDetail(message=str(error), type=_type(500), code="engine_failed")


def error_answer(
    status: int, message: str, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error of the protocol itself."""
    detail = ErrorDetail(message=message, type=_type(status), param=param, code=code)
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), status, headers=headers)


def install(app: FastAPI) -> None:
    """Has `app` answer every error in that form."""

    @app.exception_handler(UserError)
    async def _user_error(request: Request, error: UserError) -> JSONResponse:
        status, detail = error_detail(error)
        headers = {"Retry-After": _RETRY_SECONDS} if status in (429, 503) else None
        return JSONResponse(ErrorAnswer(error=detail).model_dump(), status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return error_answer(400, f"{param or 'body'}: {first['msg']}", param, "invalid_request")

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return error_answer(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        return error_answer(500, "a bug in dsv3export: see the server's log", code="internal_error")


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    return "server_error" if status >= 500 else "invalid_request_error"
