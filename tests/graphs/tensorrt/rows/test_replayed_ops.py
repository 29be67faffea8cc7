"""What the rows tell TensorRT to compute is what each op is defined as: their networks, replayed, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dsv3export.engine.program import Phase
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.graphs.tensorrt.one_op import NATIVE_CASES, computed, define_op, replayed
from tests.plugins.agreement import assert_agrees
from tests.plugins.cases import Case, experts_case, experts_fp8_case, experts_int_case, linear_int_case, mla_fp8_case
from tests.support.compare import assert_close, assert_op_close

# Relative to the largest result: a few roundings to 8 or 11 binary digits one after the other.
TOLERANCES = {"BF16": 2**-6, "F16": 2**-9}


def _all_to(case: Case, ids: list[int], name: str) -> Case:
    """The same tokens, each through these experts."""
    chosen = np.tile(np.array(ids, np.int64), (case.inputs["ids"].shape[0], 1))
    return replace(case, name=name, inputs={**case.inputs, "ids": chosen})


def _rounding(case: Case, name: str) -> Case:
    return replace(case, name=name, attributes={**case.attributes, "activations": "int8"})


MORE_CASES = [
    _all_to(experts_case("one", 9, 16, 8, 8, 1), [5], "all_tokens_to_one_expert"),
    _all_to(experts_fp8_case("few", 40, 256, 128, 16, 2), [15, 0], "first_and_last_expert_only"),
    _all_to(experts_int_case("few", 9, 64, 32, 6, 2, 4, 32, True), [1, 4], "two_of_six_experts"),
    experts_fp8_case("blocks_cut_short", 3, 200, 136, 4, 2),
    experts_fp8_case("one_token", 1, 256, 128, 16, 4),
    mla_fp8_case("blocks_across_heads", (33, 0, 7), 2, 48, (3, 40, 16, 24, 160), 0.1),
]
# In 16 bits an activation may be rounded to the neighbour of the int8 number that the definition has.
ROUNDING_CASES = [
    _rounding(linear_int_case("int8", 3, 64, 5, 8, 32), "int8_activations"),
    _rounding(linear_int_case("int4_last_group_cut", 2, 50, 7, 4, 32), "int4_activations_last_group_cut"),
    _rounding(experts_int_case("int8", 7, 64, 32, 6, 2, 8, 32, False), "int8_activations"),
]


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    pytest.importorskip("tensorrt_rtx_bindings")
    return Recorder(load_tensorrt("tensorrt-rtx"))


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("case", [*NATIVE_CASES, *MORE_CASES], ids=str)
def test_in_float32_it_is_the_op(recorder: Recorder, case: Case, phase: Phase) -> None:
    one = define_op(recorder, case, "F32", phase)
    for port, actual, expected in zip(one.emitter.outputs, replayed(recorder, one), case.expected(), strict=True):
        assert_agrees(case, port.name.removesuffix("_out"), actual.reshape(expected.shape), expected)


@pytest.mark.parametrize("compute", ["BF16", "F16"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("case", [*NATIVE_CASES, *MORE_CASES], ids=str)
def test_in_16_bits_it_is_the_op_rounded(recorder: Recorder, case: Case, phase: Phase, compute: str) -> None:
    one = define_op(recorder, case, compute, phase)
    for port, actual, expected in zip(one.emitter.outputs, replayed(recorder, one), case.expected(), strict=True):
        largest = max(1.0, float(np.abs(expected).max()))
        assert_close(actual.reshape(expected.shape), expected, TOLERANCES[compute] * largest, f"{case}.{port.name}")


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("case", ROUNDING_CASES, ids=str)
def test_activations_are_rounded_as_the_kernel_does(recorder: Recorder, case: Case, phase: Phase) -> None:
    one = define_op(recorder, case, "F32", phase)
    (actual,), (expected,) = replayed(recorder, one), computed(case)
    assert_op_close(actual, expected, str(case))
    unrounded = replace(case, attributes={**case.attributes, "activations": "none"})
    assert np.abs(expected - computed(unrounded)[0]).max() > 1e-3
