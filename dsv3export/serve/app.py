"""The application: routes, limits, errors."""

from __future__ import annotations

from fastapi import FastAPI

from dsv3export import __version__
from dsv3export.errors import TokenizerError
from dsv3export.runtime.async_engine import AsyncEngine
from dsv3export.runtime.chat_template import ChatTemplate
from dsv3export.serve import about, chat, completions, errors
from dsv3export.serve.gate import ApiKey, BodyLimit
from dsv3export.serve.server_state import ServerSettings, ServerState


def create_app(engine: AsyncEngine, settings: ServerSettings) -> FastAPI:
    """The ASGI application over an engine, which it does not close.

    An engine without a chat template serves completions only.
    """
    app = FastAPI(title="dsv3export", version=__version__, docs_url=None, redoc_url=None)
    app.state.server = ServerState(engine, settings, _template(engine))
    for router in (about.router, chat.router, completions.router):
        app.include_router(router)
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key)
    return app


def _template(engine: AsyncEngine) -> ChatTemplate | None:
    try:
        return ChatTemplate.from_directory(engine.engine.tokenizer_folder)
    except TokenizerError as error:
        if error.got != "none":
            raise
        return None
