from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.errors import CheckpointError
from dsv3export.graphs.quantise import IntWeight, Method, dequantise, quantise

Float32 = NDArray[np.float32]

METHODS: list[Method] = ["rtn", "mse", "gptq"]
SYMMETRIES = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
GROUPS = pytest.mark.parametrize("group", [32, 64, None])


def _weight(*shape: int) -> Float32:
    return np.random.default_rng(0).standard_t(5, shape).astype(np.float32)


def _hessian(width: int, tokens: int = 1000, seed: int = 1) -> Float32:
    """Of inputs as a model has them: correlated, some much larger than others."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * rng.lognormal(0, 1, (width, 1))
    x = rng.normal(size=(tokens, width)) @ mixing.T
    return (x.T @ x / tokens).astype(np.float32)


def _output_error(weight: Float32, quantised: IntWeight, bits: int, group: int | None, hessian: Float32) -> float:
    error = (weight - dequantise(quantised, bits, group)).astype(np.float64)
    return float(np.einsum("...nk,...kl,...nl->", error, hessian.astype(np.float64), error))


@SYMMETRIES
@GROUPS
@pytest.mark.parametrize("bits", [4, 8])
def test_no_group_is_worse_off_with_mse_than_with_rounding(bits: int, group: int | None, symmetric: bool) -> None:
    weight = _weight(3, 16, 128)

    def errors(method: Method) -> Float32:
        value = dequantise(quantise(weight, bits, group, symmetric, None, method), bits, group)
        squares = np.square((weight - value).astype(np.float64))
        return squares.reshape(3, 16, -1, group or 128).sum(-1)

    rtn, mse = errors("rtn"), errors("mse")
    assert (mse <= rtn * (1 + 1e-4)).all()
    assert mse.sum() < (0.95 if bits == 4 else 1.0001) * rtn.sum()


@SYMMETRIES
@GROUPS
def test_gptq_has_less_than_half_the_output_error_of_rounding(group: int | None, symmetric: bool) -> None:
    weight, hessian = _weight(48, 128), _hessian(128)
    rtn, mse, gptq = (
        _output_error(weight, quantise(weight, 4, group, symmetric, hessian, method), 4, group, hessian)
        for method in METHODS
    )
    assert gptq < 0.5 * rtn
    assert gptq < 0.6 * mse


@pytest.mark.parametrize("method", METHODS)
@SYMMETRIES
@pytest.mark.parametrize(("width", "group"), [(100, 32), (100, None), (31, 64), (1, 32)])
def test_cut_groups_have_their_scales(method: Method, symmetric: bool, width: int, group: int | None) -> None:
    weight, hessian = _weight(5, width), _hessian(width)
    quantised = quantise(weight, 4, group, symmetric, hessian, method)
    groups = -(-width // (group or width))
    assert quantised.q.shape == (5, width)
    assert quantised.q.max() <= 15
    assert quantised.scale.shape == (5, groups)
    assert (quantised.zero_point is None) == symmetric
    if quantised.zero_point is not None:
        assert quantised.zero_point.shape == (5, groups)
    whole = float(np.einsum("nk,kl,nl->", weight, hessian, weight))
    assert _output_error(weight, quantised, 4, group, hessian) < 0.05 * whole


@pytest.mark.parametrize("method", METHODS)
@SYMMETRIES
def test_a_bank_is_quantised_expert_by_expert(method: Method, symmetric: bool) -> None:
    bank = _weight(3, 16, 64)
    hessians = np.stack([_hessian(64, seed=seed) for seed in range(3)])
    whole = quantise(bank, 4, 32, symmetric, hessians, method)
    for expert, weight in enumerate(bank):
        alone = quantise(weight, 4, 32, symmetric, hessians[expert], method)
        np.testing.assert_array_equal(whole.q[expert], alone.q)
        np.testing.assert_allclose(whole.scale[expert], alone.scale, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_equal_arguments_give_equal_bytes(method: Method) -> None:
    weight, hessian = _weight(16, 96), _hessian(96)
    first, second = (quantise(weight.copy(), 4, 32, False, hessian.copy(), method) for _ in range(2))
    for name in ("q", "scale", "zero_point"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_arguments_are_left_alone(method: Method) -> None:
    weight, hessian = _weight(8, 64), _hessian(64)
    copies = weight.copy(), hessian.copy()
    quantise(weight, 4, 32, True, hessian, method)
    np.testing.assert_array_equal(weight, copies[0])
    np.testing.assert_array_equal(hessian, copies[1])


@SYMMETRIES
def test_an_expert_without_tokens_gets_the_scales_of_least_weight_error(symmetric: bool) -> None:
    weight, nothing = _weight(8, 64), np.zeros((64, 64), np.float32)
    identity = np.eye(64, dtype=np.float32)
    mse = quantise(weight, 4, 32, symmetric, None, "mse")
    gptq = quantise(weight, 4, 32, symmetric, nothing, "gptq")
    assert _output_error(weight, gptq, 4, 32, identity) <= _output_error(weight, mse, 4, 32, identity) * 1.0001


@SYMMETRIES
def test_few_tokens_and_dead_inputs_are_survived(symmetric: bool) -> None:
    """Three tokens for 64 inputs, half of them always zero, and rows of zeros."""
    weight = _weight(8, 64)
    weight[3] = 0
    x = np.random.default_rng(0).normal(size=(3, 64)) * (np.arange(64) % 2)
    hessian = (x.T @ x / 3).astype(np.float32)
    value = dequantise(quantise(weight, 4, 32, symmetric, hessian, "gptq"), 4, 32)
    assert np.isfinite(value).all()
    assert (value[3] == 0).all()
    # What calibration has not seen is at least rounded to something near.
    assert np.abs(value - weight).max() < np.abs(weight).max() / 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named(method: Method, bad: float) -> None:
    weight = _weight(4, 32)
    weight[2, 7] = bad
    with pytest.raises(CheckpointError, match=r"lm_head\.weight\[2, 7\]: expected a finite number, got (nan|-?inf)"):
        quantise(weight, 4, 32, True, _hessian(32), method, name="lm_head.weight")
