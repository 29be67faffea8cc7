from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.dtypes import NUMPY
from dsv3export.graphs.quantise import dequantise_blocks, quantise_blocks

F8 = NUMPY["F8_E4M3"]
# Every finite magnitude of the format, ascending: its index is its bit pattern.
MAGNITUDES = np.arange(0x7F, dtype=np.uint8).view(F8).astype(np.float64)


def nearest(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bits of the nearest float8 e4m3 (ties to the even pattern), found by searching all of them in float64."""
    size = np.abs(x.astype(np.float64))
    above = np.clip(np.searchsorted(MAGNITUDES, size), 1, len(MAGNITUDES) - 1)
    below = above - 1
    middle = (MAGNITUDES[above] + MAGNITUDES[below]) / 2
    index = np.where((size > middle) | ((size == middle) & (above % 2 == 0)), above, below)
    return (index | (np.signbit(x) << 7)).astype(np.uint8)


def expected(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Block by block, the scale divided in float32 as the format's author does."""
    rows, columns = weight.shape
    bits = np.empty(weight.shape, np.uint8)
    scale = np.empty((-(-rows // 128), -(-columns // 128)), np.float32)
    for i, j in itertools.product(*map(range, scale.shape)):
        part = (slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128))
        scale[i, j] = np.abs(weight[part]).max() / np.float32(448)
        bits[part] = nearest(weight[part] / scale[i, j])
    return bits, scale


@pytest.mark.parametrize("shape", [(128, 128), (160, 256), (576, 200), (1, 1), (129, 127), (300, 130)])
def test_blocks_are_the_nearest_float8_bit_for_bit(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(sum(shape)).standard_t(3, shape).astype(np.float32)
    bits, scale = quantise_blocks(weight)
    expected_bits, expected_scale = expected(weight)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(bits.view(np.uint8), expected_bits)
    assert bits.dtype == F8


def test_the_value_is_the_float8_times_its_block_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(160, 200)).astype(np.float32)
    bits, scale = quantise_blocks(weight)
    spread = np.repeat(np.repeat(scale, 128, axis=0), 128, axis=1)[:160, :200]
    np.testing.assert_array_equal(dequantise_blocks(bits, scale), bits.astype(np.float32) * spread)


def test_a_bank_is_its_matrices() -> None:
    bank = np.random.default_rng(0).normal(size=(3, 130, 140)).astype(np.float32)
    bits, scale = quantise_blocks(bank)
    assert scale.shape == (3, 2, 2)
    for i, matrix in enumerate(bank):
        np.testing.assert_array_equal(bits[i].view(np.uint8), quantise_blocks(matrix)[0].view(np.uint8))
        np.testing.assert_array_equal(dequantise_blocks(bits, scale)[i], dequantise_blocks(bits[i], scale[i]))


def test_values_of_the_format_survive() -> None:
    """Powers of two as scales: quantising what was dequantised changes nothing."""
    weight = np.tile(np.concatenate([MAGNITUDES, -MAGNITUDES]), 129).reshape(-1, 254).astype(np.float32)
    bits, scale = quantise_blocks(weight)
    assert (scale == 1).all()
    np.testing.assert_array_equal(dequantise_blocks(bits, scale), weight)


@pytest.mark.parametrize("size", [0.0, 1e-45, 7e-43, 1e-38, 5e-36, 3.4e38])
def test_extreme_blocks_stay_finite_with_a_positive_scale(size: float) -> None:
    weight = np.full((2, 3), size, np.float32)
    bits, scale = quantise_blocks(weight)
    assert (scale > 0).all()
    np.testing.assert_allclose(dequantise_blocks(bits, scale), weight, rtol=1e-6, atol=1e-35)
