"""From a weight of the graph to the checkpoint's tensors."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.rope import inverse_frequencies

INVERSE_FREQUENCIES = "rotary.inverse_frequencies"
_BANKS = (".mlp.experts.gate_proj", ".mlp.experts.up_proj", ".mlp.experts.down_proj")


def checkpoint_tensors(name: str, config: ModelConfig) -> tuple[str, ...]:
    """The checkpoint tensors that make up a weight of the graph, in order.

    One for a plain weight, E for a bank of experts, none for a table that the config determines.
    """
    if name == INVERSE_FREQUENCIES:
        return ()
    if name.endswith(_BANKS):
        layer, _, projection = name.rpartition(".")
        return tuple(f"{layer}.{expert}.{projection}.weight" for expert in range(config.n_routed_experts or 0))
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return ("model.embed_tokens.weight",)
    return (name,)


def load_float32(name: str, checkpoint: Checkpoint) -> np.ndarray:
    """A weight of the graph as float32; FP8 tensors are multiplied by their block scales."""
    sources = checkpoint_tensors(name, checkpoint.config)
    if not sources:
        return inverse_frequencies(checkpoint.config)
    if not name.endswith(_BANKS):
        return checkpoint.float32(sources[0])
    first = checkpoint.float32(sources[0])
    bank = np.empty((len(sources), *first.shape), np.float32)
    bank[0] = first
    for index, source in enumerate(sources[1:], start=1):
        bank[index] = checkpoint.float32(source)
    return bank


class WeightCache:
    """Float32 torch weights by graph name; keeps the latest ones up to a budget of bytes.

    A model that does not fit is streamed: each layer's weights are read again when its turn comes.
    """

    def __init__(self, checkpoint: Checkpoint, max_bytes: int) -> None:
        self._checkpoint = checkpoint
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        array = load_float32(name, self._checkpoint)
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        self._kept[name] = tensor
        self._bytes += tensor.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return tensor
