from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.graphs.quantise import ExpertInputs, MomentSum

RNG_SEED = 3
T, D, I, E, K = 60, 12, 6, 4, 2  # noqa: E741  (the field's names)


def _inputs() -> ExpertInputs:
    """Expert 3 gets no token."""
    rng = np.random.default_rng(RNG_SEED)
    ids = np.stack([rng.permutation(E - 1)[:K] for _ in range(T)])
    return ExpertInputs(rng.normal(size=(T, D)).astype(np.float32), ids, rng.uniform(0.1, 1, (T, K)).astype(np.float32))


def _mean(x: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x * counts[:, None]).T @ x / counts.sum()


def test_the_mean_does_not_depend_on_the_pieces() -> None:
    x = np.random.default_rng(0).normal(size=(2, 30, 7)).astype(np.float32)
    moments = MomentSum(7)
    for piece in (x[0, :10], x[0, 10:], x[1:]):
        moments.add(piece)
    rows = x.reshape(-1, 7)
    np.testing.assert_allclose(moments.hessian(), rows.T @ rows / 60, rtol=1e-5, atol=1e-6)


def test_without_inputs_it_is_zero() -> None:
    assert not MomentSum(5).hessian().any()


@pytest.mark.parametrize("expert", [0, 1, 2])
def test_an_experts_own_tokens_are_blended_with_half_its_width_of_the_layers(expert: int) -> None:
    inputs = _inputs()
    rows, choice = np.nonzero(inputs.ids == expert)
    x = inputs.x.astype(np.float64)
    own = _mean(x[rows], inputs.weights[rows, choice].astype(np.float64) ** 2)
    overall = _mean(x, np.ones(T))
    expected = (own * len(rows) + overall * D / 2) / (len(rows) + D / 2)
    np.testing.assert_allclose(inputs.hessian(expert), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expert", [0, 2])
def test_the_inner_activations_of_all_tokens_take_part(expert: int) -> None:
    inputs = _inputs()
    rng = np.random.default_rng(1)
    gate, up = rng.normal(size=(2, I, D)).astype(np.float32)
    x = inputs.x.astype(np.float64)
    gated = x @ gate.T
    inner = gated / (1 + np.exp(-gated)) * (x @ up.T)
    rows, choice = np.nonzero(inputs.ids == expert)
    own = _mean(inner[rows], inputs.weights[rows, choice].astype(np.float64) ** 2)
    expected = (own * len(rows) + _mean(inner, np.ones(T)) * I / 2) / (len(rows) + I / 2)
    np.testing.assert_allclose(inputs.inner_hessian(expert, gate, up), expected, rtol=1e-3, atol=1e-4)


def test_an_expert_without_tokens_follows_the_layer() -> None:
    inputs = _inputs()
    x = inputs.x.astype(np.float64)
    np.testing.assert_allclose(inputs.hessian(3), _mean(x, np.ones(T)), rtol=1e-4, atol=1e-5)


def test_tokens_that_count_for_nothing_make_no_nan() -> None:
    inputs = _inputs()
    silent = ExpertInputs(inputs.x, inputs.ids, np.zeros_like(inputs.weights))
    assert np.isfinite(silent.hessian(0)).all()
