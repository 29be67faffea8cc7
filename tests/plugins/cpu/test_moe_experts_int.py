"""dsv3.cpu::MoEExpertsInt: the definition in float64, and one result whatever the batch, threads, instruction set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from dsv3export.plugins.moe_experts_int.op import moe_experts_int
from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.expert_weights import ExpertWeights, expected, random_experts, routed
from tests.plugins.cpu.instruction_sets import instruction_sets
from tests.plugins.cpu.one_node import OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

X, IDS = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)


def node(bank: ExpertWeights, folder: Path, activations: str = "int8", threads: int = 2) -> OneNode:
    inputs = {"x": X, "ids": IDS, "weights": X}
    attributes = bank.attributes(activations)
    return OneNode("MoEExpertsInt", inputs, bank.inputs(), attributes, folder=folder, threads=threads)


def assert_close(y: NDArray[np.float32], reference: NDArray[np.float64], activations: str) -> None:
    """Few numbers may cancel; hidden values that are rounded to int8 may fall to the other side of a half."""
    assert y.shape == reference.shape
    error = np.linalg.norm(y - reference, axis=-1) / (np.linalg.norm(reference, axis=-1) + 1e-30)
    assert (error <= (2e-2 if activations == "int8" else 1e-4)).all(), error.max()


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    experts = draw(st.integers(1, 9))
    return {
        "bits": draw(st.sampled_from([8, 4])),
        "group": draw(st.sampled_from([16, 32, 64, 128])),
        "experts": experts,
        "model": draw(st.integers(1, 150)),
        "hidden": draw(st.integers(1, 150)),
        "zero_points": draw(st.booleans()),
        "tokens": draw(st.integers(0, 40)),
        "k": draw(st.integers(1, experts)),
        "seed": draw(st.integers(0, 1000)),
        "activations": draw(st.sampled_from(["int8", "int8", "none"])),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_ragged_shapes_on_all_instruction_sets(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(case["seed"])
    sizes = {name: case[name] for name in ("bits", "group", "experts", "model", "hidden", "zero_points")}
    bank = random_experts(generator, **sizes)
    x = generator.standard_normal((case["tokens"], case["model"]), np.float32)
    ids, weights = routed(generator, case["tokens"], case["k"], case["experts"])
    results = []
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        results.append(node(bank, tmp_path, case["activations"])(x=x, ids=ids, weights=weights)[0])
    assert_close(results[0], expected(x, ids, weights, bank, case["activations"]), case["activations"])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize(("bits", "group", "zero_points"), [(8, 32, True), (4, 128, False)])
def test_agrees_with_the_torch_op(bits: int, group: int, zero_points: bool, activations: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(bits)
    bank = random_experts(generator, bits, group, 6, 256, 128, zero_points)
    x = generator.standard_normal((21, 256), np.float32)
    ids, weights = routed(generator, 21, 3, 6)
    given = {name: None if array is None else torch.from_numpy(array) for name, array in bank.inputs().items()}
    parts = [
        given[f"{name}{part}"]
        if name == "down" or given[f"{name}{part}"] is None
        else given[f"{name}{part}"][:, row::2]
        for part in ("", "_scale", "_zero")
        for name, row in (("gate_up", 0), ("gate_up", 1), ("down", 0))
    ]
    by_bank = [parts[0], parts[3], parts[1], parts[4], parts[2], parts[5], *parts[6:]]
    tensors = (torch.from_numpy(x), torch.from_numpy(ids), torch.from_numpy(weights))
    reference = moe_experts_int(*tensors, *by_bank, bits, group, activations).numpy().astype(np.float64)
    y = node(bank, tmp_path, activations)(x=x, ids=ids, weights=weights)[0]
    error = np.linalg.norm(y - reference) / np.linalg.norm(reference)
    assert error <= (2e-3 if activations == "int8" else 1e-6)


@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 128)])
def test_a_token_alone_and_in_any_company(activations: str, bits: int, group: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    bank = random_experts(generator, bits, group, 8, 300, 200, False)
    x = generator.standard_normal((90, 300), np.float32)
    ids, weights = routed(generator, 90, 3, 8)
    together = node(bank, tmp_path, activations, threads=2)(x=x, ids=ids, weights=weights)[0]
    alone = node(bank, tmp_path, activations, threads=1)
    begin = 0
    for tokens in (1, 1, 2, 3, 5, 8, 13, 21, 34):
        part = slice(begin, begin + tokens)
        y = alone(x=x[part], ids=ids[part], weights=weights[part])[0]
        np.testing.assert_array_equal(y, together[part], err_msg=f"{tokens} tokens")
        begin += tokens


@pytest.mark.parametrize("tokens", [1, 33])
def test_all_tokens_on_the_last_expert(tokens: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    bank = random_experts(generator, 4, 32, 64, 64, 32, False)
    x = generator.standard_normal((tokens, 64), np.float32)
    ids, weights = np.full((tokens, 1), 63, np.int64), generator.uniform(0.1, 1, (tokens, 1)).astype(np.float32)
    y = node(bank, tmp_path)(x=x, ids=ids, weights=weights)[0]
    assert_close(y, expected(x, ids, weights, bank, "int8"), "int8")


def test_choices_are_added_in_their_order(tmp_path: Path) -> None:
    """Weights of very different size: another order would round differently."""
    generator = np.random.default_rng(3)
    bank = random_experts(generator, 8, 32, 4, 64, 64, False)
    x = generator.standard_normal((1, 64), np.float32)
    run = node(bank, tmp_path)
    one = [run(x=x, ids=np.array([[e]]), weights=np.ones((1, 1), np.float32))[0].astype(np.float64) for e in range(4)]
    ids, weights = np.array([[2, 0, 3, 1]]), np.array([[1.0, 3e-5, 0.7, -1.5]], np.float32)
    total = np.zeros((1, 64), np.float32)
    for expert, weight in zip(ids[0], weights[0].astype(np.float64), strict=True):
        total = (one[expert] * weight + total).astype(np.float32)
    np.testing.assert_array_equal(run(x=x, ids=ids, weights=weights)[0], total)


def test_sessions_share_the_packed_banks_and_run_at_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    bank = random_experts(generator, 4, 32, 4, 256, 128, False)
    run = node(bank, tmp_path, threads=1)
    x = generator.standard_normal((8, 12, 256), np.float32)
    routes = [routed(generator, 12, 2, 4) for _ in range(8)]
    one_by_one = [run(x=x[i], ids=routes[i][0], weights=routes[i][1])[0] for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda i: run(x=x[i], ids=routes[i][0], weights=routes[i][1])[0], range(8)))
    np.testing.assert_array_equal(at_once, one_by_one)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    bank = random_experts(np.random.default_rng(0), 8, 32, 3, 64, 32, False)
    run = node(bank, tmp_path)
    x, ids, weights = np.zeros((2, 64), np.float32), np.zeros((2, 1), np.int64), np.ones((2, 1), np.float32)
    with pytest.raises(Fail, match="ids: expected numbers from 0 to 2, got 3"):
        run(x=x, ids=ids + 3, weights=weights)
    with pytest.raises(Fail, match=r"weights: expected shape \[2, 1\], got \[2, 2\]"):
        run(x=x, ids=ids, weights=np.ones((2, 2), np.float32))
    with pytest.raises(RuntimeException, match="down_scale: expected"):
        wrong = bank.inputs() | {"down_scale": np.zeros((3, 64, 2), np.float32)}
        OneNode("MoEExpertsInt", {"x": X, "ids": IDS, "weights": X}, wrong, bank.attributes("int8"), folder=tmp_path)
    with pytest.raises(RuntimeException, match="activations: expected int8 or none, got int4"):
        attributes = bank.attributes("int4")
        OneNode("MoEExpertsInt", {"x": X, "ids": IDS, "weights": X}, bank.inputs(), attributes, folder=tmp_path)


def test_a_long_prompt_goes_in_parts(tmp_path: Path) -> None:
    """Two parts: the intermediate values of 1000 tokens would take more than 128 MiB."""
    generator = np.random.default_rng(5)
    bank = random_experts(generator, 8, 32, 6, 16, 6000, False)
    x = generator.standard_normal((1000, 16), np.float32)
    ids, weights = routed(generator, 1000, 5, 6)
    run = node(bank, tmp_path)
    y = run(x=x, ids=ids, weights=weights)[0]
    for part in (slice(0, 3), slice(480, 520), slice(997, 1000)):
        np.testing.assert_array_equal(run(x=x[part], ids=ids[part], weights=weights[part])[0], y[part])
