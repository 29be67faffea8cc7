from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsv3export.graphs.quantise import dequantise, quantise_groups, split_groups

WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=40),
    elements=st.floats(-100, 100, width=32),
)
GROUPS = st.sampled_from([8, 16, 32, None])
BITS = st.sampled_from([4, 8])


@given(WEIGHTS, BITS, GROUPS, st.booleans())
def test_no_weight_moves_by_more_than_half_a_step(
    weight: np.ndarray, bits: int, group: int | None, symmetric: bool
) -> None:
    quantised = quantise_groups(weight, bits, group, symmetric)
    width = weight.shape[-1]
    groups = -(-width // (group or width))
    assert quantised.scale.shape == (*weight.shape[:-1], groups)
    assert (quantised.zero_point is None) == symmetric
    step = np.repeat(quantised.scale, group or width, axis=-1)[..., :width]
    # The ends of an asymmetric range may lie one more half step outside, as its zero point is rounded too.
    allowed = step * np.float32(0.5 if symmetric else 1.0)
    error = np.abs(dequantise(quantised, bits, group) - weight)
    assert (error <= allowed * 1.001 + np.finfo(np.float32).tiny).all()


@given(WEIGHTS, BITS, GROUPS, st.booleans())
def test_zero_stays_zero(weight: np.ndarray, bits: int, group: int | None, symmetric: bool) -> None:
    weight = np.where(np.abs(weight) < 50, np.float32(0), weight)
    value = dequantise(quantise_groups(weight, bits, group, symmetric), bits, group)
    assert (value[weight == 0] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_values_on_a_grid_are_kept_exactly(bits: int, symmetric: bool) -> None:
    numbers = np.arange(2**bits) - 2 ** (bits - 1) + symmetric
    weight = (numbers[: 2**bits - symmetric] * 0.25).astype(np.float32)[None]
    quantised = quantise_groups(weight, bits, None, symmetric)
    np.testing.assert_array_equal(dequantise(quantised, bits, None), weight)
    assert quantised.scale.item() == 0.25


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 3e38])
def test_extreme_groups_stay_finite(size: float, symmetric: bool) -> None:
    weight = np.array([[size, -size, size, 0]], np.float32)
    quantised = quantise_groups(weight, 4, 4, symmetric)
    assert np.isfinite(quantised.scale).all()
    assert quantised.scale.all()
    np.testing.assert_allclose(dequantise(quantised, 4, 4), weight, rtol=0.1, atol=1e-30)


def test_groups_do_not_see_one_another() -> None:
    weight = np.array([[1, 2, 3, 4, 100, 200, 300, 400]], np.float32)
    apart = np.concatenate([dequantise(quantise_groups(half, 4, 4, True), 4, 4) for half in np.split(weight, 2, 1)], 1)
    np.testing.assert_array_equal(dequantise(quantise_groups(weight, 4, 4, True), 4, 4), apart)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("group", "groups"), [(None, 4), (128, 4)])
def test_splitting_groups_changes_no_value(group: int | None, groups: int, symmetric: bool) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
    whole = quantise_groups(weight, 4, group, symmetric)
    parts = split_groups(whole, group, 64)
    assert parts.scale.shape == (3, groups)
    np.testing.assert_array_equal(dequantise(parts, 4, 64), dequantise(whole, 4, group))
