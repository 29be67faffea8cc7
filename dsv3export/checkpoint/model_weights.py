"""From a weight of the model to the checkpoint's tensors: banks of experts, tied heads, computed tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv3export.checkpoint.checkpoint import Checkpoint
from dsv3export.checkpoint.validate import SCALE
from dsv3export.config import ModelConfig
from dsv3export.rope import inverse_frequencies

INVERSE_FREQUENCIES = "rotary.inverse_frequencies"
_BANKS = (".mlp.experts.gate_proj", ".mlp.experts.up_proj", ".mlp.experts.down_proj")


def checkpoint_tensors(name: str, config: ModelConfig) -> tuple[str, ...]:
    """The checkpoint tensors that make up a weight of the model, in order.

    One for a plain weight, E for a bank of experts, none for a table that the config determines.
    """
    if name == INVERSE_FREQUENCIES:
        return ()
    if is_bank(name):
        layer, _, projection = name.rpartition(".")
        return tuple(f"{layer}.{expert}.{projection}.weight" for expert in range(config.n_routed_experts))
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return ("model.embed_tokens.weight",)
    return (name,)


def is_bank(name: str) -> bool:
    """Whether a weight of the model is a bank: one tensor per expert, stacked."""
    return name.endswith(_BANKS)


def weight_shape(name: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The shape of a weight of the model, [E, N, K] of a bank; () of a table that the config determines."""
    sources = checkpoint_tensors(name, checkpoint.config)
    if not sources:
        return ()
    shape = checkpoint.tensors[sources[0]].shape
    return (len(sources), *shape) if is_bank(name) else shape


def load_float32(name: str, checkpoint: Checkpoint, rows: slice = slice(None)) -> NDArray[np.float32]:
    """A weight of the model as float32; FP8 tensors are multiplied by their block scales.

    Args:
        rows: A part of the first axis: experts of a bank, rows of a matrix (see `Checkpoint.float32`).
    """
    sources = checkpoint_tensors(name, checkpoint.config)
    if not sources:
        return inverse_frequencies(checkpoint.config)[rows]
    if not is_bank(name):
        return checkpoint.float32(sources[0], rows)
    chosen = sources[rows]
    bank = np.empty((len(chosen), *checkpoint.tensors[sources[0]].shape), np.float32)
    for index, source in enumerate(chosen):
        bank[index] = checkpoint.float32(source)
    return bank


def forget_weight(name: str, checkpoint: Checkpoint, rows: slice = slice(None)) -> None:
    """Let go of the pages of the checkpoint that a weight, or some experts of a bank, was read from."""
    sources = checkpoint_tensors(name, checkpoint.config)
    for source in sources if len(sources) == 1 else sources[rows]:
        for stored in (source, f"{source}{SCALE}"):
            if stored in checkpoint.tensors:
                checkpoint.forget(stored)
