"""How many bytes of weights a model has, and how many of them one decoded token must read from memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from benchmarks.subjects import Subject
from dsv3export.bench.traffic import bytes_read, engine_weights
from dsv3export.checkpoint import Checkpoint, expected_tensors
from dsv3export.config import ModelConfig
from dsv3export.engine.reader import EngineFiles

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of all weights as a program stores them, and of those at work for one token.

    For a token that is one row of the embedding, the chosen experts of each layer, and all else in full. What the
    program unpacks or copies beyond that is not in it, nor is the cache.
    """

    total: int
    per_token: float


def weight_bytes(subject: Subject, config: ModelConfig) -> WeightBytes:
    """Of what `subject` loads to decode without drafts; `config` is the model's."""
    return _sum(_SIZES[subject.program](subject, config), config)


def _of_engine(subject: Subject, config: ModelConfig) -> Iterable[tuple[str, int]]:
    return engine_weights(EngineFiles.open(subject.model).manifest, config)


def _of_gguf(subject: Subject, config: ModelConfig) -> Iterable[tuple[str, int]]:
    import gguf

    return [(tensor.name, int(tensor.n_bytes)) for tensor in gguf.GGUFReader(subject.model).tensors]


def _of_checkpoint(subject: Subject, config: ModelConfig) -> Iterable[tuple[str, int]]:
    shapes = expected_tensors(Checkpoint.open(subject.model).config)
    return [(name, prod(shape) * _BYTES[subject.options["dtype"]]) for name, shape in shapes.items()]


_SIZES = {"dsv3export": _of_engine, "llama.cpp": _of_gguf, "transformers": _of_checkpoint}


def _sum(sizes: Iterable[tuple[str, int]], config: ModelConfig) -> WeightBytes:
    sizes = list(sizes)
    return WeightBytes(sum(size for _, size in sizes), bytes_read(sizes, config))
