"""dsv3.cpu::LinearFp8Block: the op's definition, and the same bits whatever the batch, threads, instruction set."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsv3export.plugins.linear_fp8_block.matmul import fp8_matmul, round_activations
from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.instruction_sets import instruction_sets
from tests.plugins.cpu.one_node import Array, OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

F32 = NDArray[np.float32]


def weights(columns: int, depth: int) -> dict[str, Array]:
    """Every number of the format but NaN, and scales of very different size."""
    generator = np.random.default_rng(1)
    bits = generator.integers(0, 256, (columns, depth)).astype(np.uint8)
    bits[(bits & 0x7F) == 0x7F] = 1
    scale = 10.0 ** generator.uniform(-5, -1, (-(-columns // 128), -(-depth // 128)))
    return {"weight": bits.view(ml_dtypes.float8_e4m3fn), "scale": scale.astype(np.float32)}


def rows_of(count: int, depth: int) -> F32:
    """A row of zeros among them, and groups of very different size."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((count, depth), np.float32)
    x *= 10.0 ** generator.integers(-3, 3, (count, 1)).astype(np.float32)
    x[: count // 5] = 0
    return x


def node(bank: dict[str, Array], depth: int, activations: str, folder: Path, threads: int = 2) -> OneNode:
    x = np.zeros((1, depth), np.float32)
    return OneNode("LinearFp8Block", {"x": x}, bank, {"activations": activations}, folder=folder, threads=threads)


def assert_close(y: F32, x: F32, bank: dict[str, Array], activations: str) -> None:
    """Of the definition within float32's rounding of sums."""
    raw, scale = torch.from_numpy(bank["weight"].view(np.uint8)).view(torch.float8_e4m3fn), bank["scale"]
    expected = fp8_matmul(torch.from_numpy(x), raw, torch.from_numpy(scale), activations).numpy()
    spread = scale.repeat(128, axis=0)[: len(raw)].repeat(128, axis=1)[:, : x.shape[1]]
    seen = round_activations(torch.from_numpy(x)).numpy() if activations == "1x128" else x
    magnitude = np.abs(seen).astype(np.float64) @ np.abs(bank["weight"].astype(np.float64) * spread).T
    assert y.shape == expected.shape
    assert (np.abs(y - expected) <= 64 * 2.0**-24 * magnitude).all()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    activations=st.sampled_from(["none", "1x128"]),
    count=st.integers(0, 40),
    columns=st.integers(1, 300),
    depth=st.integers(1, 400),
)
def test_ragged_shapes_on_all_instruction_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activations: str, count: int, columns: int, depth: int
) -> None:
    x, bank = rows_of(count, depth), weights(columns, depth)
    results = []
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        results.append(node(bank, depth, activations, tmp_path)(x=x)[0])
    assert_close(results[0], x, bank, activations)
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("activations", ["none", "1x128"])
def test_rows_do_not_depend_on_batch_or_threads(activations: str, tmp_path: Path) -> None:
    x, bank = rows_of(61, 300), weights(131, 300)
    (together,) = node(bank, 300, activations, tmp_path)(x=x)
    alone = node(bank, 300, activations, tmp_path, threads=1)
    for row in range(len(x)):
        np.testing.assert_array_equal(alone(x=x[row : row + 1])[0], together[row : row + 1])


def test_every_number_of_the_format_is_read(tmp_path: Path) -> None:
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)[:, None]
    bank: dict[str, Array] = {"weight": numbers, "scale": np.ones((2, 1), np.float32)}
    (y,) = node(bank, 1, "none", tmp_path)(x=np.ones((1, 1), np.float32))
    np.testing.assert_array_equal(y[0], numbers[:, 0].astype(np.float32))


@pytest.mark.parametrize(
    ("bank", "activations", "message"),
    [
        (
            {**weights(8, 8), "scale": np.ones((2, 1), np.float32)},
            "none",
            r"scale: expected shape \[1, 1\], got \[2, 1\]",
        ),
        (weights(8, 8), "int8", "activations: expected none or 1x128, got int8"),
    ],
)
def test_a_refusal_is_one_clear_line(bank: dict[str, Array], activations: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=f"LinearFp8Block: {message}"):
        node(bank, 8, activations, tmp_path)(x=np.zeros((1, 8), np.float32))
