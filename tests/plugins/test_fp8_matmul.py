from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from dsv3export.graphs.quantise import dequantise_blocks, quantise_blocks
from dsv3export.plugins.linear_fp8_block.matmul import fp8_matmul, quantise_activations


def _case(rows: int, width: int, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(rows + width)
    bits, scale = quantise_blocks(rng.normal(size=(rows, width)).astype(np.float32))
    x = torch.from_numpy(rng.standard_t(4, (tokens, width)).astype(np.float32))
    return x, torch.from_numpy(bits.view(np.uint8)).view(torch.float8_e4m3fn), torch.from_numpy(scale)


@pytest.mark.parametrize("width", [128, 200, 384, 60])
def test_activations_are_blocks_of_one_row(width: int) -> None:
    """The same rounding as the weights', which are compared with a search in float64."""
    x = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
    values, scales = quantise_activations(torch.from_numpy(x))
    for row in range(3):
        bits, scale = quantise_blocks(x[row : row + 1])
        np.testing.assert_array_equal(values[row].view(torch.uint8).numpy(), bits[0].view(np.uint8))
        np.testing.assert_array_equal(scales[row].numpy(), scale[0])


@pytest.mark.parametrize("size", [0.0, 1e-45, 7e-43, 1e-38])
def test_tiny_activations_give_no_nan(size: float) -> None:
    values, scales = quantise_activations(torch.full((1, 128), size))
    assert torch.isfinite(values.float()).all()
    assert (scales > 0).all()


def test_the_product_is_defined_to_the_bit() -> None:
    """Against rational arithmetic: each sum of 128 products exact, rounded once; then three float32 operations."""
    x, weight, scale = _case(130, 200, tokens=2)
    values, x_scales = quantise_activations(x)
    got = fp8_matmul(x, weight, scale, "1x128").numpy()
    for token in range(2):
        for row in (0, 1, 127, 128, 129):
            y = np.float32(0)
            for block, (begin, end) in enumerate([(0, 128), (128, 200)]):
                pairs = zip(values[token, begin:end].tolist(), weight[row, begin:end].tolist(), strict=True)
                exact = sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction())
                # A float64 holds such a sum exactly, and float32 rounds it once.
                assert Fraction(float(exact)) == exact
                part = np.float32(float(exact)) * np.float32(x_scales[token, block])
                y += part * np.float32(scale[row // 128, block])
            assert got[token, row] == y


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight, scale = _case(160, 256, tokens=37)
    whole = fp8_matmul(x, weight, scale, "1x128")
    for i in (0, 17, 36):
        assert torch.equal(fp8_matmul(x[i : i + 1], weight, scale, "1x128"), whole[i : i + 1])


@pytest.mark.parametrize(("rows", "width"), [(128, 128), (160, 200), (300, 512)])
def test_without_rounded_activations_it_is_the_product_with_the_dequantised_weight(rows: int, width: int) -> None:
    x, weight, scale = _case(rows, width)
    value = dequantise_blocks(weight.view(torch.uint8).numpy(), scale.numpy())
    expected = x.double() @ torch.from_numpy(value).double().T
    got = fp8_matmul(x, weight, scale, "none").double()
    assert torch.linalg.norm(got - expected) < 1e-6 * torch.linalg.norm(expected)


def test_rounded_activations_cost_a_few_percent() -> None:
    x, weight, scale = _case(160, 512)
    expected = fp8_matmul(x, weight, scale, "none")
    got = fp8_matmul(x, weight, scale, "1x128")
    assert 0.001 < torch.linalg.norm(got - expected) / torch.linalg.norm(expected) < 0.05


def test_leading_dimensions_are_kept() -> None:
    x, weight, scale = _case(130, 256, tokens=6)
    flat = fp8_matmul(x, weight, scale, "1x128")
    assert torch.equal(fp8_matmul(x.reshape(2, 3, 256), weight, scale, "1x128"), flat.reshape(2, 3, 130))
