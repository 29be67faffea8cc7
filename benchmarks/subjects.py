"""The programs that are compared, each behind the same few methods. Imports are part of what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class Subject(Protocol):
    """A model that is loaded and ready."""

    def stream(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        """Greedy tokens: the first follows from the prefill, each of the others from one decode step."""
        ...

    def logits(self, token_ids: Sequence[int]) -> Logits:
        """float32[len(token_ids), vocab]."""
        ...


@dataclass(frozen=True)
class Paths:
    """The same model as the subjects want it."""

    checkpoint: Path
    engine: Path


def _dsv3export(paths: Paths, threads: int) -> Subject:
    from dsv3export import Engine

    engine = Engine.load(paths.engine, threads=threads)

    class Ours:
        def stream(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
            for piece in engine.stream(prompt, max_new_tokens=new_tokens, ignore_eos=True):
                yield from piece.token_ids

        def logits(self, token_ids: Sequence[int]) -> Logits:
            return engine.logits(token_ids)

    return Ours()


def _transformers(paths: Paths, threads: int, options: Mapping[str, str]) -> Subject:
    """A plain loop over `forward`, without what `generate` adds; the head runs for the last token only."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(paths.checkpoint, dtype=torch.float32, **options)
    model.train(False)

    class Theirs:
        @torch.inference_mode()
        def stream(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
            cache = DynamicCache(config=model.config)
            step = torch.tensor([prompt])
            for _ in range(new_tokens):
                output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                step = output.logits[:, -1:].argmax(-1)
                yield int(step.item())

        @torch.inference_mode()
        def logits(self, token_ids: Sequence[int]) -> Logits:
            found: Logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].numpy()
            return found

    return Theirs()


OURS = "dsv3export"
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
SUBJECTS: Mapping[str, Callable[[Paths, int], Subject]] = {
    OURS: _dsv3export,
    "transformers eager": lambda paths, threads: _transformers(paths, threads, EAGER),
    "transformers default": lambda paths, threads: _transformers(paths, threads, {}),
}
"""By the name in the results. Transformers' defaults on a CPU are sdpa attention and grouped_mm experts."""
