"""The programs that are compared, each behind the same few methods. Imports are part of what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Options = Mapping[str, str]


class Model(Protocol):
    """A model that is loaded and ready."""

    def stream(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        """Greedy tokens: the first follows from the prefill, each of the others from one decode step."""
        ...

    def logits(self, token_ids: Sequence[int]) -> Logits:
        """float32[len(token_ids), vocab]."""
        ...


@dataclass(frozen=True)
class Subject:
    """What is compared under `name`: a program of `PROGRAMS`, the file or folder that it loads, and how."""

    name: str
    program: str
    model: Path
    options: Options = field(default_factory=dict)


def _dsv3export(engine_folder: Path, threads: int, capacity: int, options: Options) -> Model:
    from dsv3export import Engine

    engine = Engine.load(engine_folder, threads=threads, capacity=capacity)

    class Ours:
        def stream(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
            for piece in engine.stream(prompt, max_new_tokens=new_tokens, ignore_eos=True):
                yield from piece.token_ids

        def logits(self, token_ids: Sequence[int]) -> Logits:
            return engine.logits(token_ids)

    return Ours()


def _llama_cpp(file: Path, threads: int, capacity: int, options: Options) -> Model:
    from benchmarks.llama_cpp_model import LlamaCppModel

    return LlamaCppModel(file, threads, capacity)


def _transformers(checkpoint: Path, threads: int, capacity: int, options: Options) -> Model:
    """A plain loop over `forward`, without what `generate` adds; the head runs for the last token only."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    settings = {**options, "dtype": getattr(torch, options["dtype"])}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, **settings)
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
            found: Logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].float().numpy()
            return found

    return Theirs()


PROGRAMS: Mapping[str, Callable[[Path, int, int, Options], Model]] = {
    "dsv3export": _dsv3export,
    "llama.cpp": _llama_cpp,
    "transformers": _transformers,
}
"""How each is loaded: what, by how many threads, for how many tokens at most, and with which options."""


def transformers(checkpoint: Path, dtype: str, implementation: str) -> Subject:
    """transformers' DeepseekV3ForCausalLM; its "default" on a CPU is sdpa attention and grouped_mm experts."""
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    options = {"dtype": dtype, **(eager if implementation == "eager" else {})}
    short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    return Subject(f"transformers {short} {implementation}", "transformers", checkpoint, options)
