"""Numbers of 8 and 4 bits made into floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.graphs.tensorrt.layer_cases.case import Case, assigned, floats, integers
from tests.graphs.tensorrt.small_network import Given


def _blocks(scale: Tensor, shape: torch.Size, block: tuple[int, ...]) -> Tensor:
    """The scale of each element, one element at a time."""
    grid = np.indices(shape)
    return scale[tuple(torch.from_numpy(index // size) for index, size in zip(grid, block, strict=True))]


_FP8 = floats(160, 200).to(torch.float8_e4m3fn)
_BLOCK_SCALE = floats(2, 2, seed=1).abs()
_NIBBLES = integers(256, 6, 128, dtype=torch.uint8)
_INT4 = torch.stack([_NIBBLES & 15, _NIBBLES >> 4], -1).flatten(1).to(torch.int8)
_SIGNED = torch.where(_INT4 > 7, _INT4 - 16, _INT4)


def _dequantize(name: str, x: Tensor, scale: Tensor, dtype: str, expected: Any, **attributes: Any) -> Case:
    return Case(
        f"dequantise {name}",
        [Given(x), Given(scale)],
        lambda t, n, x: assigned(n.add_dequantize(x[0], x[1], getattr(t, dtype)), **attributes),
        lambda x, scale: [expected(x, scale)],
    )


QUANTISATION = [
    _dequantize(
        "fp8 in ragged blocks of 128 x 128",
        _FP8,
        _BLOCK_SCALE,
        "bfloat16",
        lambda x, s: (x.double() * _blocks(s, x.shape, (128, 128))).bfloat16(),
        block_shape=(128, 128),
    ),
    _dequantize(
        "int8 by row",
        integers(128, 6, 32, low=-128, dtype=torch.int8),
        floats(6, seed=1).abs(),
        "float32",
        lambda x, s: x.float() * s[:, None],
        axis=0,
    ),
    _dequantize(
        "int4 in groups of 128",
        _NIBBLES,
        floats(6, 2, seed=1).abs().bfloat16(),
        "bfloat16",
        lambda x, s: (_SIGNED.double() * s.double().repeat_interleave(128, 1)).bfloat16(),
    ),
]
