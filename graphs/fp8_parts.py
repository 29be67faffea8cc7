"""A weight of the model as float8 e4m3 in blocks of 128 x 128: numbers and scales, from the checkpoint as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.fp8 import block_rows, check_scale
from dsv3export.checkpoint.model_weights import checkpoint_tensors, is_bank
from dsv3export.checkpoint.validate import FP8, SCALE
from dsv3export.graphs.quantise import quantise_blocks
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK

FP8_NUMBERS, FP8_SCALES = "fp8_numbers", "fp8_scales"
FP8_PARTS = (FP8_NUMBERS, FP8_SCALES)


def fp8_parts(name: str, checkpoint: Checkpoint, rows: slice = slice(None)) -> dict[str, NDArray[Any]]:
    """Both parts of a weight, by `FP8_PARTS`; a bank of experts has a leading dimension.

    A tensor that the checkpoint stores as FP8 comes byte for byte; others are quantised.

    Args:
        rows: A part of the first axis: experts of a bank; rows of a matrix, beginning with a block.
    """
    sources = checkpoint_tensors(name, checkpoint.config)
    if not is_bank(name):
        return dict(zip(FP8_PARTS, _tensor_parts(sources[0], checkpoint, rows), strict=True))
    tensors = [_tensor_parts(source, checkpoint, slice(None)) for source in sources[rows]]
    return {part: np.stack(arrays) for part, arrays in zip(FP8_PARTS, zip(*tensors, strict=True), strict=True)}


def fp8_sources(name: str, part: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The stored tensors that a part is made of."""
    stored = []
    for source in checkpoint_tensors(name, checkpoint.config):
        scaled = part == FP8_SCALES and checkpoint.tensors[source].dtype == FP8
        stored.append(f"{source}{SCALE}" if scaled else source)
    return tuple(stored)


def _tensor_parts(source: str, checkpoint: Checkpoint, rows: slice) -> tuple[NDArray[Any], NDArray[Any]]:
    if checkpoint.tensors[source].dtype != FP8:
        return quantise_blocks(checkpoint.float32(source, rows))
    scale = checkpoint.array(f"{source}{SCALE}")
    check_scale(checkpoint.tensors[f"{source}{SCALE}"], scale)
    return checkpoint.array(source)[rows], scale[block_rows(rows, BLOCK)]
