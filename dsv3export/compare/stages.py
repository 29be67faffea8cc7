"""What can be compared layer by layer: a model that runs one stage at a time and shows what it computes there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dsv3export.config import ModelConfig

Array = NDArray[Any]
Values = Mapping[str, Array]


class Stage(Protocol):
    """One layer, with its weights in memory."""

    def run(self, prompt: int, hidden: NDArray[np.float32] | None = None) -> Values:
        """Everything that the stage computes for a prompt, by provenance name.

        Args:
            prompt: Its number.
            hidden: float32 [1, S, D], to be used in place of what the stage before hands on; nothing of such a run is
                kept. The first stage takes none.

        Returns:
            Each value with the prompt's S tokens as its first axis that is longer than 1. ``Stage.output`` and
            ``Stage.handed_on`` are among them.
        """
        ...

    @property
    def output(self) -> str:
        """The name of the stage's result: the residual stream, or logits."""
        ...

    @property
    def handed_on(self) -> str:
        """The name of what the next stage takes: `output`, but of the head ``final_hidden``, which the MTP layer takes.

        That is the head's second result under the name that it has in the graph, whatever it is computed from.
        """
        ...

    @property
    def router_bias(self) -> NDArray[np.float32] | None:
        """What is added to the scores for the selection, [E]; None for a stage without experts."""
        ...


class StagedModel(Protocol):
    """A model and prompts. Stages are opened in order, each once; memory holds the weights of one."""

    @property
    def label(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def stages(self) -> tuple[str, ...]:
        """``embed``, ``layers.0``, ..., ``head``; behind them the MTP layer, under its number, if there is one.

        The MTP layer runs on the hidden state of each token and the token after it. What comes after a prompt is not
        known, and any token will do to compare two programs: the prompt's first stands for it.
        """
        ...

    def open(self, stage: str) -> AbstractContextManager[Stage]: ...
