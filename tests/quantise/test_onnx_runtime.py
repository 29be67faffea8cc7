"""What ONNX Runtime computes from the packed bytes is what `dequantise` says they mean."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.graphs.quantise import IntWeight, dequantise, quantise_groups
from tests.quantise.onnx_weights import matmul_nbits, qmoe

# The float path differs by the order of summation; the int8 path rounds each group of activations to 8 bits.
FLOAT_ERROR = 1e-6
INT8_ERROR = 2e-2
INT8_ERROR_TWO_LAYERS = 4e-2

SYMMETRIES = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
BITS = pytest.mark.parametrize("bits", [4, 8])


def _relative(got: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def _weight(*shape: int) -> NDArray[np.float32]:
    # A mean, so that symmetric and asymmetric grids differ much.
    return np.random.default_rng(0).normal(0.5, 1, shape).astype(np.float32)


@BITS
@SYMMETRIES
@pytest.mark.parametrize("group", [128, 64, 32])
@pytest.mark.parametrize(("rows", "width"), [(96, 512), (97, 384), (33, 200)])
def test_matmul_nbits_reads_the_packed_weight(bits: int, symmetric: bool, group: int, rows: int, width: int) -> None:
    weight = quantise_groups(_weight(rows, width), bits, group, symmetric)
    x = np.random.default_rng(1).normal(size=(3, width)).astype(np.float32)
    expected = x.astype(np.float64) @ dequantise(weight, bits, group).T.astype(np.float64)
    if bits == 4:  # level 0 is 50 times slower than float32 with 8 bits, and never used
        assert _relative(matmul_nbits(x, weight, bits, group, accuracy_level=0), expected) < FLOAT_ERROR
    assert _relative(matmul_nbits(x, weight, bits, group, accuracy_level=4), expected) < INT8_ERROR


@BITS
@SYMMETRIES
def test_a_row_of_one_group_is_a_block_that_holds_it(bits: int, symmetric: bool) -> None:
    """MatMulNBits' blocks are powers of two; what fills up the last one takes no part."""
    weight = quantise_groups(_weight(20, 200), bits, None, symmetric)
    x = np.random.default_rng(1).normal(size=(2, 200)).astype(np.float32)
    expected = x.astype(np.float64) @ dequantise(weight, bits, None).T.astype(np.float64)
    assert _relative(matmul_nbits(x, weight, bits, 256, accuracy_level=4), expected) < INT8_ERROR


def test_negative_scales_are_read_as_such() -> None:
    weight = quantise_groups(_weight(32, 128), 4, 32, symmetric=True)
    turned = IntWeight(weight.q, -weight.scale, None)
    x = np.random.default_rng(1).normal(size=(2, 128)).astype(np.float32)
    expected = x.astype(np.float64) @ dequantise(turned, 4, 32).T.astype(np.float64)
    assert _relative(matmul_nbits(x, turned, 4, 32, accuracy_level=0), expected) < FLOAT_ERROR
    assert _relative(matmul_nbits(x, turned, 4, 32, accuracy_level=4), expected) < INT8_ERROR


@BITS
@SYMMETRIES
@pytest.mark.parametrize("group", [128, 64, 32, None])
def test_qmoe_reads_the_packed_experts(bits: int, symmetric: bool, group: int | None) -> None:
    experts, hidden, inner, tokens, k = 4, 256, 128, 5, 2
    rng = np.random.default_rng(2)
    gate_up = quantise_groups(_weight(experts, 2 * inner, hidden) / 16, bits, group, symmetric)
    down = quantise_groups(_weight(experts, hidden, inner) / 16, bits, group, symmetric)
    x = rng.normal(size=(tokens, hidden)).astype(np.float32)
    scores = rng.uniform(size=(tokens, experts)).astype(np.float32)
    wide = dequantise(gate_up, bits, group).astype(np.float64)
    narrow = dequantise(down, bits, group).astype(np.float64)
    expected = np.zeros((tokens, hidden))
    for token in range(tokens):
        best = np.argsort(-scores[token])[:k]
        for expert in best:
            rows = wide[expert] @ x[token]
            gate, up = rows[0::2], rows[1::2]
            share = scores[token, expert] / scores[token, best].sum()
            expected[token] += share * (narrow[expert] @ (gate / (1 + np.exp(-gate)) * up))
    got = qmoe(x, scores, gate_up, down, k, bits, group)
    assert _relative(got, expected) < (INT8_ERROR_TWO_LAYERS if group else FLOAT_ERROR)
