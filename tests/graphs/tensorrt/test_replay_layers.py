"""Each replayed layer against numpy or torch, in a network that TensorRT-RTX builds."""

from __future__ import annotations

import pytest
import torch

from tests.graphs.tensorrt.layer_cases import CASES, Case
from tests.graphs.tensorrt.small_network import replayed


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_layer_computes_what_the_operator_reference_says(case: Case) -> None:
    expected = case.expected(*[given.value.clone() for given in case.inputs])

    actual = replayed(case.define, case.inputs)

    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if case.tolerance:
            assert (got - want).abs().max() <= case.tolerance * max(1.0, float(want.abs().max()))
        else:
            assert torch.equal(got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8))
