"""The golden outputs of one checkpoint (see tests/data/README.md), and the two programs that are held against them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dsv3export.runtime.batching.speculation import SpeculationStats
from dsv3export.runtime.generation import Request
from dsv3export.runtime.sampling import Sampler, SamplingParams
from dsv3export.runtime.session import Session
from dsv3export.runtime.stopping import StopStrings
from dsv3export.runtime.text_stream import TextStream
from tests.runtime.batching.requests import run_all

Array = npt.NDArray[Any]
Variant = Literal["bf16", "fp8"]


class Program(Protocol):
    """What executor and engine have in common."""

    def logits(self, token_ids: list[int]) -> Array: ...

    def draft_logits(self, token_ids: list[int]) -> Array: ...


@dataclass(frozen=True)
class Golden:
    """A checkpoint and what transformers computes for it."""

    variant: Variant
    checkpoint: Path
    folder: Path

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        prompts: list[dict[str, Any]] = json.loads((self.folder / "goldens.json").read_text())["prompts"]
        return prompts

    def ids(self, prompt: int) -> list[int]:
        ids: list[int] = self.prompts[prompt]["ids"]
        return ids

    def arrays(self, name: str) -> dict[str, Array]:
        """All arrays of ``<name>.npz``."""
        with np.load(self.folder / f"{name}.npz") as archive:
            return dict(archive)


def greedy(
    session: Session, prompts: Sequence[list[int]], count: int, slots: int, chunk: int = 256,
    speculate: int = 0, stats: SpeculationStats | None = None,
) -> list[list[int]]:  # fmt: skip
    """`count` greedy tokens for each prompt, past any end-of-sequence token, by the runtime's generation."""
    requests = [
        Request(prompt, count, Sampler(SamplingParams(), 0), TextStream(None, StopStrings([])), frozenset())
        for prompt in prompts
    ]
    tokens: list[list[int]] = [[] for _ in prompts]
    for index, piece in run_all(session, requests, slots, chunk, speculate=speculate, stats=stats):
        tokens[index] += piece.token_ids
    return tokens


def nll(logits: Array, targets: Sequence[int]) -> float:
    """Sum of the negative log-likelihoods (nats) of `targets` [n] under `logits` [n, vocab], in float64."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    log_total = largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1))
    return float((log_total - wide[np.arange(len(targets)), list(targets)]).sum())
