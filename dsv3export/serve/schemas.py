"""What the protocol's messages look like: OpenAI's names, the parts of them that this server has.

A field that is unknown here is ignored, as clients send what other servers take. One that is known and would change the
answer, but is not offered, is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from typing_extensions import Self

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(strict=True)]
# Of each, what asks for nothing.
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": ([], ["text"]),
}


class _Message(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class StreamOptions(_Message):
    include_usage: bool = False


class Sampling(_Message):
    """What both kinds of request have in common."""

    model: Text = Field("", description="Ignored but for its presence in the answer: the server has one engine.")
    max_tokens: int | None = Field(None, ge=1, description="New tokens; by default 128, or what the context leaves.")
    temperature: FiniteFloat | None = Field(None, ge=0, description="1 by default; 0 takes the likeliest token.")
    top_p: FiniteFloat | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="Not OpenAI's: sample among the k likeliest; 0 for all.")
    min_p: FiniteFloat | None = Field(None, ge=0, le=1, description="Not OpenAI's.")
    seed: int | None = Field(None, ge=0, lt=2**64)
    frequency_penalty: FiniteFloat | None = Field(None, ge=-2, le=2)
    presence_penalty: FiniteFloat | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] | None = Field(None, description="Added to the logits of these token ids.")
    n: int = Field(1, ge=1, le=16)
    stop: Text | list[Text] | None = Field(None, description="Up to 16 texts, none of them empty.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = Field(False, description="Not OpenAI's: go on after the end-of-text token.")
    user: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_offered(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name, nothing in _NOT_OFFERED.items():
                asked = values.get(name)
                if asked is not None and asked not in nothing and not (name == "best_of" and asked == values.get("n")):
                    raise ValueError(f"{name} is not offered here")
            if values.get("n", 1) is None:
                values = {**values, "n": 1}
        return values

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @model_validator(mode="after")
    def _check_stops(self) -> Self:
        if len(self.stops) > 16 or not all(self.stops):
            raise ValueError("stop takes up to 16 texts, none of them empty")
        return self


class CompletionRequest(Sampling):
    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]] = Field(
        description="Text, token ids, or a list of either."
    )
    logprobs: int | None = Field(None, ge=0, le=20)


class TextPart(_Message):
    type: Literal["text"]
    text: Text


class ChatMessage(_Message):
    model_config = ConfigDict(extra="allow")

    role: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]
    content: Text | list[TextPart] | None = None


class ChatRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Not OpenAI's: variables of the template.")


class Usage(_Message):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(_Message):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(_Message):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(_Message):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(_Message):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Message):
    content: list[TokenLogprob]


class AssistantMessage(_Message):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(_Message):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(_Message):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(_Message):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Message):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(_Message):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(_Message):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dsv3export"
    context_length: int


class ModelList(_Message):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(_Message):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(_Message):
    error: ErrorDetail


class Health(_Message):
    status: Literal["ok", "stopping", "failing"]
    running: int
    waiting: int
