"""A model that goldens are recorded from and checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dsv3export.compare.stages import StagedModel
from dsv3export.evaluate import LanguageModel
from dsv3export.golden.document import Identity
from dsv3export.runtime.session import Session

if TYPE_CHECKING:
    from dsv3export.config import ModelConfig
    from dsv3export.runtime.tokenizer import Tokenizer

Opener = Callable[[Sequence[Sequence[int]]], StagedModel]


@dataclass(frozen=True)
class GoldenModel:
    """An engine, or a checkpoint and its executor.

    Attributes:
        label: Names it in reports.
        session: Computes logits; None for a model that is only looked into.
        language_model: Computes those of a text; None likewise.
        stages: Makes it run layer by layer on prompts; None where the program has no means to look into it.
    """

    label: str
    config: ModelConfig
    identity: Identity
    session: Session | None
    language_model: LanguageModel | None = None
    stages: Opener | None = None
    tokenizer: Tokenizer | None = None

    def without_stages(self) -> GoldenModel:
        """The same, not to be looked into."""
        return replace(self, stages=None)
