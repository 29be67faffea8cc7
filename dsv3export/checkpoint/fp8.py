"""FP8 block scaling: a weight's value is its float8 e4m3 number times the float32 scale of its block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dsv3export.checkpoint.header import TensorInfo
from dsv3export.config.json_file import shown
from dsv3export.dtypes import NUMPY
from dsv3export.errors import CheckpointError

_VALUES = np.arange(256, dtype=np.uint8).view(NUMPY["F8_E4M3"]).astype(np.float32)


def check_scale(info: TensorInfo, scale: npt.NDArray[np.float32]) -> None:
    """Refuses scales that are zero, negative, infinite or NaN, naming the first."""
    good = np.isfinite(scale) & (scale > 0)
    if not good.all():
        row, column = np.argwhere(~good)[0]
        what = f"{info.file}: tensor {shown(info.name, 120)}[{row}, {column}]"
        raise CheckpointError(what, expected="a positive, finite scale", got=f"{scale[row, column]}")


def block_rows(rows: slice, height: int) -> slice:
    """The rows of scales for rows of the weight that begin with a block of `height` rows."""
    begin, end = rows.start, rows.stop
    return slice(None if begin is None else begin // height, None if end is None else -(-end // height))


def dequantize(
    weight: npt.NDArray[Any], scale: npt.NDArray[np.float32], block: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The float32 value of an FP8 weight.

    Args:
        weight: float8 e4m3 [N, K].
        scale: float32 [ceil(N / block[0]), ceil(K / block[1])]; blocks at the lower and right edge may be cut.
        block: (rows, columns).

    Source: ``weight_dequant_kernel`` in DeepSeek-V3's ``inference/kernel.py``.
    """
    value: npt.NDArray[np.float32] = _VALUES[weight.view(np.uint8)]
    height, width = block
    columns = weight.shape[1]
    for index, scales in enumerate(scale):
        value[index * height : (index + 1) * height] *= np.repeat(scales, width)[:columns]
    return value
