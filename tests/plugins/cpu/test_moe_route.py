"""dsv3.cpu::MoERoute against the op's definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from dsv3export.plugins.moe_route.op import moe_route
from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.one_node import OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

F32 = NDArray[np.float32]
Attributes = dict[str, int | float | str]
V3: Attributes = {
    "k": 8, "n_group": 8, "topk_group": 4, "group_top": 2, "scoring": "sigmoid", "normalize": 1, "scaling": 2.5
}  # fmt: skip


def node(bias: F32, attributes: Attributes, folder: Path, threads: int = 2) -> OneNode:
    logits = np.zeros((1, bias.size), np.float32)
    outputs = (TensorProto.INT64, TensorProto.FLOAT)
    return OneNode(
        "MoERoute", {"logits": logits}, {"bias": bias}, attributes, folder=folder, outputs=outputs, threads=threads
    )


def check(logits: F32, bias: F32, attributes: Attributes, folder: Path) -> None:
    ids, weights = node(bias, attributes, folder)(logits=logits)
    want_ids, want = moe_route(torch.from_numpy(logits), torch.from_numpy(bias), **attributes)
    np.testing.assert_array_equal(ids, want_ids.numpy())
    np.testing.assert_allclose(weights, want.numpy(), rtol=2e-6)


@given(
    st.integers(1, 20), st.sampled_from([1, 2, 4, 8]), st.integers(2, 9), st.sampled_from(["sigmoid", "softmax"]),
    st.booleans(), st.integers(0, 1 << 16), st.data(),
)  # fmt: skip
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_routings(
    tmp_path: Path, tokens: int, groups: int, width: int, scoring: str, normalize: bool, seed: int, data: st.DataObject
) -> None:
    """Scores so far apart that two ways of rounding agree on their order."""
    random, experts = np.random.default_rng(seed), groups * width
    kept = data.draw(st.integers(1, groups))
    logits = np.stack([random.permutation(experts) for _ in range(tokens)]).astype(np.float32) * np.float32(0.1)
    bias = random.permutation(experts).astype(np.float32) * np.float32(0.003)
    attributes: Attributes = {
        "k": data.draw(st.integers(1, kept * width)), "n_group": groups, "topk_group": kept,
        "group_top": data.draw(st.integers(1, min(2, width))), "scoring": scoring, "normalize": int(normalize),
        "scaling": 2.5,
    }  # fmt: skip
    check(logits - np.float32(experts * 0.05), bias, attributes, tmp_path)


def test_equal_scores_go_to_the_lower_expert(tmp_path: Path) -> None:
    check(np.zeros((3, 64), np.float32), np.zeros(64, np.float32), V3, tmp_path)


def test_negative_biases_leave_no_masked_expert_eligible(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    check(random.standard_normal((9, 64)).astype(np.float32), np.full(64, -2, np.float32), V3, tmp_path)


def test_large_logits(tmp_path: Path) -> None:
    logits = np.linspace(-300, 300, 64, dtype=np.float32)[None]
    ids, weights = node(np.zeros(64, np.float32), V3 | {"n_group": 1, "topk_group": 1}, tmp_path)(logits=logits)
    assert np.isfinite(weights).all()
    assert len(set(ids[0].tolist())) == 8


def test_what_is_no_number_still_gives_experts(tmp_path: Path) -> None:
    ids, weights = node(np.zeros(64, np.float32), V3, tmp_path)(logits=np.full((2, 64), np.nan, np.float32))
    assert all(sorted(set(row)) == sorted(row) for row in ids.tolist())
    assert ((ids >= 0) & (ids < 64)).all()
    assert np.isnan(weights).all()


def test_a_token_is_routed_the_same_among_any_others(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    logits, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((50, 256), (256,)))
    route = node(bias, V3, tmp_path)
    alone = [np.concatenate(parts) for parts in zip(*(route(logits=row[None]) for row in logits), strict=True)]
    for threads in (1, 2):
        for first, last in ((0, 50), (3, 20), (49, 50), (7, 7)):
            got = node(bias, V3, tmp_path, threads)(logits=logits[first:last])
            for one, other in zip(got, alone, strict=True):
                assert np.array_equal(one, other[first:last])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 65}, "k, group_top: expected at most 32 eligible experts and 8 of a group, got 65 and 2"),
        ({"n_group": 7}, "n_group, topk_group: expected parts of 64 experts, got 7"),
        ({"topk_group": 9}, "got 8 and 9"),
    ],
)
def test_impossible_choices(tmp_path: Path, change: Attributes, says: str) -> None:
    with pytest.raises(Fail, match=says):
        node(np.zeros(64, np.float32), V3 | change, tmp_path)(logits=np.zeros((1, 64), np.float32))
