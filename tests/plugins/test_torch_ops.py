"""Each torch custom op against the float64 reference, and the rules that torch demands of a custom op."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dsv3export.dtypes import NUMPY
from dsv3export.graphs.tensors import numpy_array
from dsv3export.graphs.tensors import torch_tensor as torch_of
from dsv3export.plugins import OPS
from dsv3export.plugins.latent_append.op import append_in_place, latent_append
from dsv3export.plugins.mla_attention.op import absorbed, decompressed
from tests.plugins.agreement import assert_agrees
from tests.plugins.cases import Array, Case, cases
from tests.support.compare import assert_op_close

# How many rows they read depends on `start`.
READING = ("LatentAppendHalf", "LatentAppendFp8")


def tensors(case: Case) -> list[torch.Tensor | None]:
    """An op's tensor arguments; None for optional inputs that the call leaves out."""
    inputs = {name: torch_tensor(array) for name, array in case.inputs.items()}
    return [inputs.get(port.name) for port in OPS[case.op].inputs]


def torch_tensor(array: Array) -> torch.Tensor:
    """A copy."""
    return torch_of(array.copy())


def torch_op(case: Case) -> Any:
    """The op as torch knows it, by its registered name."""
    return getattr(torch.ops.dsv3, OPS[case.op].torch_name.removeprefix("dsv3::"))


def call(case: Case) -> tuple[torch.Tensor, ...]:
    result: Any = torch_op(case)(*tensors(case), *case.attributes.values())
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_agrees_with_the_float64_reference(case: Case) -> None:
    for port, actual, expected in zip(OPS[case.op].outputs, call(case), case.expected(), strict=True):
        assert_agrees(case, port.name, numpy_array(actual), expected)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_kernel_is_the_op(case: Case) -> None:
    """The executor calls `Op.kernel`, the reference model the torch op."""
    result: Any = OPS[case.op].kernel(*tensors(case), *case.attributes.values())
    for actual, expected in zip(result if isinstance(result, tuple) else (result,), call(case), strict=True):
        assert numpy_array(actual).tobytes() == numpy_array(expected).tobytes()


@pytest.mark.parametrize("case", cases(), ids=str)
def test_registration(case: Case) -> None:
    """Schema and fake implementation agree with what the op does: shapes, dtypes, no hidden mutation."""
    arguments = (*tensors(case), *case.attributes.values())
    # The schema's test multiplies every tensor, and torch has no such product for float8.
    has_float8 = any(array.dtype == NUMPY["F8_E4M3"] for array in case.inputs.values())
    tests = ("test_faketensor",) if has_float8 else ("test_schema", "test_faketensor")
    torch.library.opcheck(torch_op(case).default, arguments, test_utils=tests)


@pytest.mark.parametrize("case", [case for case in cases() if case.op not in READING], ids=str)
def test_meta_tensors_give_the_shapes_of_the_results(case: Case) -> None:
    metas = [tensor if tensor is None else tensor.to("meta") for tensor in tensors(case)]
    result: Any = torch_op(case)(*metas, *case.attributes.values())
    for meta, actual in zip(result if isinstance(result, tuple) else (result,), call(case), strict=True):
        assert (meta.shape, meta.dtype, meta.device.type) == (actual.shape, actual.dtype, "meta")


@pytest.mark.parametrize("case", cases("MlaAttention"), ids=str)
def test_decompressed_and_absorbed_attention_agree(case: Case) -> None:
    arguments: Any = (*tensors(case), case.attributes["scale"])
    (expected,) = case.expected()
    assert_op_close(decompressed(*arguments), expected, "decompressed")
    assert_op_close(absorbed(*arguments), expected, "absorbed")


def test_latent_append_copies_and_its_kernel_writes_in_place() -> None:
    case = cases("LatentAppend")[1]
    cache, kv_c, k_pe, start = (torch.from_numpy(array.copy()) for array in case.inputs.values())
    before = cache.clone()
    updated = latent_append(cache, kv_c, k_pe, start)
    assert torch.equal(cache, before)
    assert append_in_place(cache, kv_c, k_pe, start) is cache
    assert torch.equal(cache, updated)


def test_a_router_bias_selects_but_does_not_weigh() -> None:
    logits = torch.zeros(1, 4)
    bias = torch.tensor([0.0, 0.0, 5.0, 4.0])
    ids, weights = torch.ops.dsv3.moe_route(logits, bias, 2, 1, 1, 1, "sigmoid", 0, 1.0)
    assert ids.tolist() == [[2, 3]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_masked_groups_lose_to_negative_scores() -> None:
    """Group 0 wins by its best pair; with 0.0 for masked experts, group 1's would beat the negative third choice."""
    logits = torch.zeros(1, 6)
    bias = torch.tensor([1.0, 1.0, -3.0, -0.6, -0.6, -0.6])
    ids, _ = torch.ops.dsv3.moe_route(logits, bias, 3, 2, 1, 2, "sigmoid", 1, 1.0)
    assert ids.tolist() == [[0, 1, 2]]


def test_the_reference_itself_is_causal() -> None:
    """A check of the checker: what lies behind a query's position does not matter, what lies before does."""
    case = next(case for case in cases("MlaAttention") if case.name == "chunk_after_many")
    (out,) = case.expected()
    for row, changed in ((62, [2]), (61, [1, 2]), (0, [0, 1, 2])):
        inputs = {**case.inputs, "cache": case.inputs["cache"].copy()}
        inputs["cache"][0, row] += 1
        (other,) = Case(case.op, case.name, inputs, case.attributes).expected()
        assert np.flatnonzero((out != other).any(axis=(0, 2))).tolist() == changed


@pytest.mark.parametrize("name", ["int8", "int8_last_group_cut", "int4_zero_points"])
def test_activations_rounded_to_int8(name: str) -> None:
    """The same as without rounding, of an input that is rounded beforehand: one scale per row and group, amax / 127."""
    case = next(case for case in cases("LinearInt") if case.name == name)
    rounded = case.inputs["x"].astype(np.float64)
    for first in range(0, rounded.shape[1], case.attributes["group"]):
        part = rounded[:, first : first + case.attributes["group"]]
        scale = np.abs(part).max(axis=1, keepdims=True) / 127
        part[:] = np.round(part / scale) * scale
    (expected,) = Case(case.op, name, {**case.inputs, "x": rounded}, case.attributes).expected()
    (result,) = call(Case(case.op, name, case.inputs, {**case.attributes, "activations": "int8"}))
    assert_op_close(result, expected)
    assert np.abs(result.numpy() - case.expected()[0]).max() > 1e-4
