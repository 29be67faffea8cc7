"""dsv3.cpu::Linear: float32's rounding, and the same bits for a row whatever the batch, threads, instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.instruction_sets import instruction_sets
from tests.plugins.cpu.one_node import OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def weight(dtype: type, columns: int, depth: int) -> NDArray[Any]:
    values = np.random.default_rng(1).standard_normal((columns, depth), np.float32)
    values[0, :4] = (0, -0.0, 6e-8, 1e-5)[:depth]  # float16 subnormals
    return values.astype(dtype)


def linear(x: NDArray[np.float32], w: NDArray[Any], folder: Path, threads: int = 2) -> NDArray[np.float32]:
    (y,) = OneNode("Linear", {"x": x}, {"weight": w}, {}, folder=folder, threads=threads)(x=x)
    return y


def assert_close(y: NDArray[np.float32], x: NDArray[np.float32], w: NDArray[Any]) -> None:
    """Within float32's rounding of a sum, K / 16 + 4 additions deep."""
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    scale = np.abs(x).astype(np.float64) @ np.abs(w.astype(np.float64)).T
    assert y.shape == expected.shape
    assert (np.abs(y - expected) <= (x.shape[-1] / 16 + 5) * 2.0**-24 * scale).all()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(0, 40),
    columns=st.integers(1, 150),
    depth=st.integers(1, 300),
)
def test_ragged_shapes_on_all_instruction_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, rows: int, columns: int, depth: int
) -> None:
    x = np.random.default_rng(0).standard_normal((rows, depth), np.float32)
    w = weight(dtype, columns, depth)
    results = []
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        results.append(linear(x, w, tmp_path))
    assert_close(results[0], x, w)
    assert all(np.array_equal(result, results[0]) for result in results)


def test_leading_dimensions_stay(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2, 17), np.float32)
    assert_close(linear(x, weight(np.float16, 9, 17), tmp_path), x, weight(np.float16, 9, 17))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_batch_or_threads(dtype: type, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((61, 200), np.float32)
    w = weight(dtype, 67, 200)
    together = linear(x, w, tmp_path, threads=2)
    alone = OneNode("Linear", {"x": x}, {"weight": w}, {}, folder=tmp_path, threads=1)
    for row in range(len(x)):
        np.testing.assert_array_equal(alone(x=x[row : row + 1])[0], together[row : row + 1])
    np.testing.assert_array_equal(linear(x[7:30], w, tmp_path, threads=5), together[7:30])


def test_infinity_and_nan_stay_in_their_rows_and_columns(tmp_path: Path) -> None:
    x = np.ones((3, 40), np.float32)
    x[1, 7], x[2, 39] = np.inf, np.nan
    w = np.ones((5, 40), np.float16)
    w[4, 0] = np.nan
    y = linear(x, w, tmp_path)
    assert y[0, :4].tolist() == [40.0] * 4
    assert np.isinf(y[1, :4]).all()
    assert np.isnan(y[2]).all()
    assert np.isnan(y[:, 4]).all()


def test_a_wrong_shape_is_one_clear_line(tmp_path: Path) -> None:
    x = np.zeros((2, 8), np.float32)
    node = OneNode("Linear", {"x": x}, {"weight": np.zeros((4, 8), np.float32)}, {}, folder=tmp_path)
    with pytest.raises(Exception, match=r"Linear: x: expected \[\.\.\., 8\], got \[2, 7\]"):
        node(x=x[:, :7])


def test_a_wrong_type_is_one_clear_line(tmp_path: Path) -> None:
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(Exception, match="Linear: weight: expected bfloat16, float16 or float32, got int8"):
        linear(x, np.zeros((4, 8), np.int8), tmp_path)
