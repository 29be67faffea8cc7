"""What a golden says about itself: the JSON part, and the arrays that have to lie beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

FORMAT = "dsv3export-golden"
VERSION = 1

Digest = Literal["none", "norm", "projections", "full"]
DIGESTS: tuple[Digest, ...] = get_args(Digest)
Detail = Literal["layers", "all"]
DETAILS: tuple[Detail, ...] = get_args(Detail)
Shape = tuple[int, ...]
_MOST_UINT8_EXPERTS = 256


def router_ids_dtype(experts: int) -> str:
    """The safetensors dtype of experts' numbers."""
    return "U8" if experts <= _MOST_UINT8_EXPERTS else "I16"


@dataclass(frozen=True)
class Settings:
    """What is recorded.

    Attributes:
        top: Log-probabilities kept of each position, those of the likeliest tokens; 0 for the whole vocabulary.
        new_tokens: The greedy continuation's; an end-of-sequence token does not end it.
        digest: What is kept of the values inside the model: nothing, each token's norm, norm and projections on
            `projections` random directions, or all numbers.
        detail: Of which values: what each layer hands on, or all that the traced layers name.
        seed: Of the random directions.
        chunk_tokens: Of the text, as `evaluate` cuts it.
    """

    top: int = 8
    new_tokens: int = 16
    digest: str = "projections"
    detail: str = "layers"
    projections: int = 8
    seed: int = 0
    chunk_tokens: int = 255


@dataclass(frozen=True)
class Identity:
    """What was recorded, and by which programs.

    Attributes:
        kind: ``engine`` or ``checkpoint``.
        arithmetic: The recipe in short, see `profile.arithmetic`.
        recipe: All of it.
        layers: Decoder layers, those of an engine of a part of the model.
        config_sha256, checkpoint_sha256: Of config.json, and of the sizes and headers of all weight files.
        tokenizer_sha256: Of tokenizer.json; None where there is none.
        programs: Names and versions, one after the other.
        threads: As asked for; None for the physical cores.
    """

    kind: str
    arithmetic: str
    recipe: Any
    vocab_size: int
    hidden_size: int
    layers: tuple[int, ...]
    n_routed_experts: int
    num_experts_per_tok: int
    config_sha256: str
    checkpoint_sha256: str
    tokenizer_sha256: str | None
    programs: tuple[str, ...]
    threads: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """What two models must have in common to be compared at all."""
        return self.vocab_size, self.hidden_size, self.n_routed_experts, self.num_experts_per_tok, *self.layers


@dataclass(frozen=True)
class Prompt:
    """A prompt and its results that are no arrays.

    Attributes:
        text: None for one that was given as token ids.
        greedy: The likeliest token after the prompt, the likeliest after that, ...
        nll: Sum of -ln p of the prompt's own tokens from the second on, in nats.
    """

    text: str | None
    ids: tuple[int, ...]
    greedy: tuple[int, ...]
    nll: float


@dataclass(frozen=True)
class LayerValue:
    """A value inside the model: `width` numbers for each token, or a router, which chooses `chosen` of `width`."""

    name: str
    stage: str
    width: int
    chosen: int = 0

    @property
    def is_router(self) -> bool:
        return self.chosen > 0


@dataclass(frozen=True)
class Text:
    """A text whose perplexity was taken; its tokens and what each of them cost are arrays."""

    tokens: int
    perplexity: float


@dataclass(frozen=True)
class Bound:
    """How far a right engine may be from the golden by one metric, and the noise that says so.

    Attributes:
        bound: `largest` times the profile's margin, of a divergence times its square, rounded up to two digits.
        values: How many were seen of right programs; `median`, `p99` and `largest` are theirs.
    """

    metric: str
    bound: float
    values: int
    median: float
    p99: float
    largest: float


@dataclass(frozen=True)
class Profile:
    """The bounds for engines of one arithmetic.

    Attributes:
        name: ``int4``: an int4 engine against a golden in float32; ``same-int4``: against one of int4.
        margin: What the largest noise was multiplied with.
        runs: What was run to see the noise.
    """

    name: str
    margin: float
    runs: tuple[str, ...]
    bounds: tuple[Bound, ...]

    def bound(self, metric: str) -> float | None:
        """None for a metric that the profile knows nothing about."""
        return next((each.bound for each in self.bounds if each.metric == metric), None)


@dataclass(frozen=True)
class Document:
    """The JSON part of a golden."""

    format: str
    version: int
    producer: str
    identity: Identity
    settings: Settings
    prompts: tuple[Prompt, ...]
    values: tuple[LayerValue, ...]
    text: Text | None
    profiles: tuple[Profile, ...]
    data_sha256: str

    @property
    def tokens(self) -> int:
        """Of all prompts."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    def arrays(self) -> dict[str, tuple[str, Shape]]:
        """Name -> safetensors dtype and shape of every array; rows of all prompts lie one after the other."""
        rows = {"logits": self.tokens, "greedy": len(self.prompts) * self.settings.new_tokens}
        specs: dict[str, tuple[str, Shape]] = {}
        for part, count in rows.items():
            kept = self.settings.top or self.identity.vocab_size
            specs[f"{part}.values"] = "F32", (count, kept)
            specs[f"{part}.total"] = "F64", (count,)
            if self.settings.top:
                specs[f"{part}.ids"] = "I32", (count, kept)
        for value in self.values:
            specs |= self._router(value) if value.is_router else self._digest(value)
        if self.text is not None:
            specs |= {"text.ids": ("I32", (self.text.tokens,)), "text.nll": ("F32", (self.text.tokens,))}
        return specs

    def _router(self, value: LayerValue) -> dict[str, tuple[str, Shape]]:
        return {
            f"{value.name}.ids": (router_ids_dtype(value.width), (self.tokens, value.chosen)),
            f"{value.name}.weights": ("F32", (self.tokens, value.chosen)),
            f"{value.name}.margin": ("F32", (self.tokens,)),
        }

    def _digest(self, value: LayerValue) -> dict[str, tuple[str, Shape]]:
        settings = self.settings
        if settings.digest == "full":
            return {f"{value.name}.values": ("F32", (self.tokens, value.width))}
        norm: dict[str, tuple[str, Shape]] = {f"{value.name}.norm": ("F32", (self.tokens,))}
        if settings.digest == "norm":
            return norm
        return norm | {f"{value.name}.projections": ("F32", (self.tokens, settings.projections))}
