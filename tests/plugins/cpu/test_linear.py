"""dsv3.cpu::Linear: exact to float32's rounding, and the same for a row whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.one_node import OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def weight(dtype: type, columns: int, depth: int) -> NDArray[Any]:
    values = np.random.default_rng(1).standard_normal((columns, depth), np.float32)
    values[0, :4] = (0, -0.0, 6e-8, 1e-5)  # float16 subnormals
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "columns"), [((1, 40), 70), ((3, 2, 17), 1), ((33, 130), 65)])
def test_agrees_with_float64(dtype: type, shape: tuple[int, ...], columns: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    w = weight(dtype, columns, shape[-1])
    (y,) = OneNode("Linear", {"x": x}, {"weight": w}, {}, folder=tmp_path)(x=x)
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    scale = np.abs(x).astype(np.float64) @ np.abs(w.astype(np.float64)).T
    assert (np.abs(y - expected) <= 4e-7 * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_batch_or_threads(dtype: type, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((19, 100), np.float32)
    w = weight(dtype, 67, 100)
    (together,) = OneNode("Linear", {"x": x}, {"weight": w}, {}, folder=tmp_path, threads=2)(x=x)
    alone = OneNode("Linear", {"x": x}, {"weight": w}, {}, folder=tmp_path, threads=1)
    for row in range(len(x)):
        np.testing.assert_array_equal(alone(x=x[row : row + 1])[0], together[row : row + 1])


def test_a_wrong_shape_is_one_clear_line(tmp_path: Path) -> None:
    x = np.zeros((2, 8), np.float32)
    linear = OneNode("Linear", {"x": x}, {"weight": np.zeros((4, 8), np.float32)}, {}, folder=tmp_path)
    with pytest.raises(Exception, match=r"Linear: x: expected \[\.\.\., 8\], got \[2, 7\]"):
        linear(x=x[:, :7])
