"""What the routes of one server share."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from fastapi import Request as HttpRequest

from dsv3export.runtime.async_engine import AsyncEngine
from dsv3export.runtime.chat_template import ChatTemplate
from dsv3export.runtime.request_maker import GenerationOptions
from dsv3export.serve.account import Account
from dsv3export.serve.metrics import Metrics
from dsv3export.serve.schemas import Sampling
from dsv3export.serve.tokens import TokenTexts


@dataclass(frozen=True)
class ServerSettings:
    """How a server is to behave.

    Args:
        model: The engine's name in the API.
        api_key: What clients must show; None lets all in.
        timeout: Seconds for a request.
        max_body_bytes: Of a request.
    """

    model: str
    api_key: str | None = None
    timeout: float = 600.0
    max_body_bytes: int = 8 << 20


@dataclass
class ServerState:
    """The engine, its template if it has one, and what is counted."""

    engine: AsyncEngine
    settings: ServerSettings
    template: ChatTemplate | None
    metrics: Metrics = field(init=False)
    texts: TokenTexts = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))
    stopping: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine)
        self.texts = TokenTexts(self.engine.engine.tokenizer)

    def account(self, route: str, prefix: str) -> tuple[str, Account]:
        """A new id and its account."""
        name = f"{prefix}-{uuid.uuid4().hex}"
        return name, Account(self.metrics, route, name)


def state_of(request: HttpRequest) -> ServerState:
    """The state of the server that got `request`."""
    state: ServerState = request.app.state.server
    return state


def options_of(asked: Sampling, logprobs: int | None) -> GenerationOptions:
    """OpenAI's defaults where nothing is asked for: temperature 1, everything may be drawn."""
    return {
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "top_k": asked.top_k or 0,
        "min_p": asked.min_p or 0.0,
        "seed": asked.seed,
        "stop": asked.stops or None,
        "ignore_eos": asked.ignore_eos,
        "logprobs": logprobs,
        "frequency_penalty": asked.frequency_penalty or 0.0,
        "presence_penalty": asked.presence_penalty or 0.0,
        "logit_bias": asked.logit_bias,
    }
