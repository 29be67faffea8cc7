"""A GGUF model on llama.cpp's C interface, token ids in and logits out; without what its Python classes add."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


class LlamaCppModel:
    """A loaded model with one context of `capacity` tokens.

    Everything is llama.cpp's default (a memory-mapped file, weights repacked for the CPU where it can, flash attention
    where it chooses so, a 16-bit cache) but for what the arguments say.

    Args:
        file: The GGUF file.
        threads: For prefill and decoding alike.
        capacity: Tokens that the cache holds; also the largest batch.
        float32_cache: Keep keys and values in float32: slower, and closer to what the weights say.

    Raises:
        RuntimeError: llama.cpp could not load the file.
    """

    def __init__(self, file: Path, threads: int, capacity: int, float32_cache: bool = False) -> None:
        keep_quiet()
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise RuntimeError(f"llama.cpp could not load {file}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = capacity
        settings.n_threads = settings.n_threads_batch = threads
        if float32_cache:
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        context = llama_cpp.llama_init_from_model(model, settings)
        if context is None:
            raise RuntimeError(f"llama.cpp could not make a context of {capacity} tokens for {file}")
        self._model, self._context, self.capacity = model, context, capacity
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.weight_bytes: int = llama_cpp.llama_model_size(model)

    def stream(self, prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        """Greedy tokens: the first follows from the prefill, each of the others from one decode step."""
        self._forget()
        step = list(prompt)
        for _ in range(new_tokens):
            tokens = (llama_cpp.llama_token * len(step))(*step)
            self._decode(llama_cpp.llama_batch_get_one(tokens, len(step)))
            step = [int(self._rows(-1, 1)[0].argmax())]
            yield step[0]

    def logits(self, token_ids: Sequence[int]) -> Logits:
        """float32[len(token_ids), vocab_size], all tokens in one batch."""
        self._forget()
        count = len(token_ids)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for place, token in enumerate(token_ids):
                batch.token[place], batch.pos[place] = token, place
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                batch.logits[place] = True
            self._decode(batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        return np.stack([self._rows(row, 1)[0] for row in range(count)])

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def _decode(self, batch: llama_cpp.llama_batch) -> None:
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with code {code} for {batch.n_tokens} tokens")

    def _rows(self, first: int, count: int) -> Logits:
        found = llama_cpp.llama_get_logits_ith(self._context, first)
        return np.ctypeslib.as_array(found, (count, self.vocab_size))


def keep_quiet() -> None:
    """llama.cpp tells much on stderr; what fails is reported by its return values."""
    llama_cpp.llama_log_set(_silent, None)


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass
