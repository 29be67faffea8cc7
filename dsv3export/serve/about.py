"""What the server says about itself: models, health, metrics, the chat page."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from dsv3export.serve.errors import RESPONSES
from dsv3export.serve.schemas import ErrorAnswer, Health, Model, ModelList
from dsv3export.serve.server_state import ServerState, state_of

router = APIRouter()
# The page loads nothing and talks to nobody but this server.
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@router.get("/v1/models", responses={401: RESPONSES[401]})
async def models(http: HttpRequest) -> ModelList:
    """The one model there is."""
    return ModelList(data=[_model(state_of(http))])


@router.get("/v1/models/{name}", responses={401: RESPONSES[401], 404: {"model": ErrorAnswer}})
async def model(name: str, http: HttpRequest) -> Model:
    """A model by name."""
    found = _model(state_of(http))
    if name != found.id:
        raise HTTPException(404, f"there is no model {name!r}; this server has {found.id!r}")
    return found


@router.get(
    "/health",
    responses={503: {"model": Health, "description": "The server is shutting down, or one of its ranks is gone."}},
)
async def health(http: HttpRequest, response: Response) -> Health:
    """Whether requests are taken."""
    state = state_of(http)
    now = state.engine.state
    status: Literal["ok", "stopping", "failing"] = "stopping" if state.stopping else "ok"
    if state.engine.fault:
        status = "failing"
    response.status_code = 200 if status == "ok" else 503
    return Health(status=status, running=now.running, waiting=now.waiting)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(http: HttpRequest) -> Response:
    """For Prometheus."""
    return Response(state_of(http).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """A page to chat with the model."""
    text = files("dsv3export.serve").joinpath("page.html").read_text("utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})


def _model(state: ServerState) -> Model:
    return Model(id=state.settings.model, created=state.created, context_length=state.engine.engine.limits.context)
