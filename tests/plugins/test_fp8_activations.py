"""The FP8 ops with activations rounded to e4m3 in groups of 128: torch ops and ONNX functions, against float64."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest

from dsv3export.plugins import OPS
from tests.plugins.cases import Array, Case, cases
from tests.plugins.float64_ops import fp8_value, linear
from tests.plugins.onnx_function import generic_text, run_function, uses_only_standard_ops
from tests.plugins.test_torch_ops import call
from tests.support.compare import assert_op_close

ALL = [*cases("LinearFp8Block"), *cases("MlaAttentionFp8Block"), *cases("MoEExpertsFp8Block")]


def rounded(x: Array) -> Array:
    """Group by group: amax / 448 is the scale, as float32; the quotients are rounded to e4m3."""
    out = np.empty(x.shape)
    for first in range(0, x.shape[-1], 128):
        part = x[..., first : first + 128].astype(np.float32)
        scale = np.abs(part).max(axis=-1, keepdims=True) / np.float32(448)
        out[..., first : first + 128] = (part / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    return out


def expected(case: Case) -> Array:
    """By the float64 reference without rounding, of inputs that are rounded here."""
    inputs = dict(case.inputs)
    if case.op == "MoEExpertsFp8Block":
        return experts(**inputs)
    if case.op == "LinearFp8Block":
        inputs["x"] = rounded(inputs["x"])
    else:
        latent = inputs["kv_b"].shape[1]
        cache = inputs["cache"]
        inputs["cache"] = np.concatenate([rounded(cache[..., :latent]), cache[..., latent:]], axis=-1)
    (result,) = Case(case.op, case.name, inputs, {**case.attributes, "activations": "none"}).expected()
    return result


def experts(x: Array, ids: Array, weights: Array, **banks: Array) -> Array:
    """Both the rows and what lies between the products are rounded."""
    gate, up, down = (fp8_value(banks[name], banks[f"{name}_scale"]) for name in ("gate", "up", "down"))
    out = np.zeros(x.shape)
    for token, choice in np.ndindex(*ids.shape):
        expert, row = ids[token, choice], rounded(x[token])
        gated = linear(row, gate[expert])
        hidden = gated / (1 + np.exp(-gated)) * linear(row, up[expert])
        out[token] += weights[token, choice] * linear(rounded(hidden), down[expert])
    return out


def rounding(case: Case) -> Case:
    attributes: Mapping[str, object] = {**case.attributes, "activations": "1x128"}
    return Case(case.op, case.name, case.inputs, attributes)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_torch_op(case: Case) -> None:
    (result,) = call(rounding(case))
    assert_op_close(result, expected(case))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_generic_function(case: Case) -> None:
    text = generic_text(rounding(case))
    assert uses_only_standard_ops(text)
    (result,) = run_function(OPS[case.op], text, case.inputs)
    assert_op_close(result, expected(case))


@pytest.mark.parametrize("case", [case for case in ALL if "one" not in case.name], ids=str)
def test_rounding_is_seen(case: Case) -> None:
    """By far more than the tolerance above."""
    assert np.abs(expected(case) - case.expected()[0]).max() > 1e-3
