"""The ONNX functions of the ops, run by ONNX Runtime, against the float64 reference.

Generic: in standard ops, so that any ONNX Runtime runs the graph. Lowered: in ONNX Runtime's own ops, weights packed.
"""

from __future__ import annotations

import numpy as np
import pytest

from dsv3export.graphs.lower.onnxruntime.ops import ROWS
from dsv3export.plugins import OPS
from tests.plugins.agreement import assert_agrees
from tests.plugins.cases import Case, cases, mla_case
from tests.plugins.onnx_function import (
    Array,
    generic_text,
    lowered_text,
    packed_inputs,
    run_function,
    uses_only_standard_ops,
)
from tests.support.compare import assert_close, assert_op_close

DECOMPRESS_IF = "decompress = Greater (saved, zero_scalar)"


# ONNX Runtime's form of these rounds activations to 8 bits where that pays.
ROUNDING = ("MlaAttentionInt",)


def check(case: Case, results: list[Array]) -> None:
    for port, actual, expected in zip(OPS[case.op].outputs, results, case.expected(), strict=True):
        assert_agrees(case, port.name, actual, expected)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_generic_function(case: Case) -> None:
    text = generic_text(case)
    assert uses_only_standard_ops(text)
    check(case, run_function(OPS[case.op], text, case.inputs))


@pytest.mark.parametrize("case", [case for case in cases() if case.op in ROWS and case.op not in ROUNDING], ids=str)
def test_lowered_function(case: Case) -> None:
    check(case, run_function(OPS[case.op], lowered_text(case), packed_inputs(case)))


def saved_multiplications(case: Case) -> int:
    """How many multiplications per head and slot decompressing saves, counted product by product."""
    queries, longest = case.inputs["q_nope"].shape[1], int(case.inputs["start"].max()) + case.inputs["q_nope"].shape[1]
    nope, rope, latent = case.inputs["q_nope"].shape[3], case.inputs["q_pe"].shape[3], case.inputs["kv_b"].shape[1]
    value = case.inputs["kv_b"].shape[0] // case.inputs["q_nope"].shape[2] - nope
    absorb = queries * latent * nope + queries * longest * (latent + rope)
    absorb += queries * longest * latent + queries * latent * value
    expand = longest * latent * (nope + value)
    attend = queries * longest * (nope + rope) + queries * longest * value
    return absorb - (expand + attend)


def test_the_cases_lie_on_both_sides_of_the_cost_threshold() -> None:
    saved = {case.name: saved_multiplications(case) for case in cases("MlaAttention")}
    assert saved["true_dims_prefill"] > 0 > saved["true_dims_decode"]
    assert saved["prefill"] > 0 > saved["decode"]


@pytest.mark.parametrize("case", cases("MlaAttention"), ids=str)
@pytest.mark.parametrize("decompress", [True, False])
def test_both_forms_of_attention_are_right_at_every_shape(case: Case, decompress: bool) -> None:
    text = lowered_text(case)
    assert text.count(DECOMPRESS_IF) == 1
    forced = text.replace(DECOMPRESS_IF, f"decompress = {'Equal' if decompress else 'Less'} (zero_scalar, zero_scalar)")
    check(case, run_function(OPS[case.op], forced, packed_inputs(case)))


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 8, 11, 16])
def test_attention_takes_the_form_that_needs_fewer_multiplications(new: int) -> None:
    """The condition itself, read out of the function, around the point where it turns."""
    case = mla_case(f"threshold_{new}", (10,), new, 26, (2, 6, 4, 5, 8))
    text = lowered_text(case)
    start = text.index("    out = If (decompress)")
    probe = text[:start] + "    out = Cast <to = 1> (decompress)\n}\n"
    (decompress,) = run_function(OPS[case.op], probe, packed_inputs(case))
    assert bool(decompress) == (saved_multiplications(case) > 0)


def test_experts_whose_weight_is_zero_add_nothing() -> None:
    """A sigmoid far below zero is 0 in float32; its logarithm must not make the result NaN."""
    case = cases("MoEExperts")[1]
    weights = case.inputs["weights"].copy()
    weights[0] = 0.0
    weights[1, 0] = 0.0
    zeroed = Case(case.op, "zero_weights", {**case.inputs, "weights": weights}, case.attributes)
    (result,) = run_function(OPS[case.op], lowered_text(zeroed), packed_inputs(zeroed))
    assert_op_close(result, zeroed.expected()[0])
    assert not np.any(result[0])


@pytest.mark.parametrize("case", cases("MlaAttentionInt"), ids=str)
@pytest.mark.parametrize("decompress", [True, False])
def test_attention_on_8_bit_weights(case: Case, decompress: bool) -> None:
    """Exact when it dequantises; its integer products err by no more than rounding a row to 8 bits must."""
    text = lowered_text(case)
    assert text.count(DECOMPRESS_IF) == 1
    forced = text.replace(DECOMPRESS_IF, f"decompress = {'Equal' if decompress else 'Less'} (zero_scalar, zero_scalar)")
    (result,) = run_function(OPS[case.op], forced, packed_inputs(case))
    (expected,) = case.expected()
    if decompress:
        assert_op_close(result, expected)
    else:
        assert_close(result, expected, 0.02 * float(np.abs(expected).max()))


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_op_has_cases(op: str) -> None:
    assert cases(op)


@pytest.mark.parametrize("case", [*cases("LinearInt"), *cases("MoEExpertsInt")], ids=str)
def test_int8_activations_of_onnx_runtime(case: Case) -> None:
    """Its rounding of activations errs as much as rounding to int8 must, and no more: 1 % of the largest result."""
    rounding = Case(case.op, case.name, case.inputs, {**case.attributes, "activations": "int8"})
    (result,) = run_function(OPS[case.op], lowered_text(rounding), packed_inputs(rounding))
    (expected,) = case.expected()
    assert_close(result, expected, 0.01 * float(np.abs(expected).max()))
