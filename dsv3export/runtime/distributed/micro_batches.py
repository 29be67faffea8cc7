"""A long step as several short ones, so that pipeline stages work on different tokens at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dsv3export.runtime.session import IntArray

# Fewer tokens do not keep a stage busy: it reads all its weights for each part.
_LEAST_TOKENS = 32
_PARTS_PER_STAGE = 2


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A part of a step: some tokens of all its sequences.

    Attributes:
        input_ids, start, logit_rows: As of a step.
        tokens: Which of the step's tokens of each sequence.
        places: For each of `logit_rows`, which row of the whole step's logits it is.
    """

    input_ids: IntArray
    start: IntArray
    logit_rows: IntArray
    tokens: slice
    places: IntArray


def micro_batches(input_ids: IntArray, start: IntArray, logit_rows: IntArray, stages: int) -> Iterator[MicroBatch]:
    """The parts of a step, in the order in which they have to run: a token needs those before it.

    Twice as many as there are stages, or fewer: each has at least 32 tokens, and of one stage there is one part.
    """
    batch, length = input_ids.shape
    parts = max(1, min(_PARTS_PER_STAGE * stages, batch * length // _LEAST_TOKENS, length)) if stages > 1 else 1
    sequence, position = np.divmod(logit_rows, length)
    edges = [length * part // parts for part in range(parts + 1)]
    for first, end in pairwise(edges):
        places = np.flatnonzero((position >= first) & (position < end))
        rows = sequence[places] * (end - first) + position[places] - first
        yield MicroBatch(input_ids[:, first:end], start + first, rows, slice(first, end), places)
