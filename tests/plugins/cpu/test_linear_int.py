"""dsv3.cpu::LinearInt: exact integer sums, one result whatever the instruction set, the batch and the threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.instruction_sets import instruction_sets
from tests.plugins.cpu.one_node import OneNode
from tests.plugins.cpu.packed_weights import PackedWeights, random_weights

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

F32 = NDArray[np.float32]


def node(weights: PackedWeights, folder: Path, activations: str = "int8", threads: int = 2) -> OneNode:
    columns, depth = weights.numbers.shape
    attributes: dict[str, int | float | str] = {
        "K": depth, "N": columns, "bits": weights.bits, "group": weights.group, "activations": activations
    }  # fmt: skip
    x = np.zeros((1, 1), np.float32)
    return OneNode("LinearInt", {"x": x}, weights.inputs(), attributes, folder=folder, threads=threads)


def rounded(x: F32, group: int) -> tuple[NDArray[np.int64], F32]:
    """int8 numbers [M, K] and their scales [M, G], by the definition."""
    rows, depth = x.shape
    padded = np.pad(x, ((0, 0), (0, -depth % group))).reshape(rows, -1, group)
    scale = np.abs(padded).max(axis=-1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = np.where(scale[..., None] > 0, np.rint(padded / scale[..., None]), 0)
    return numbers.reshape(rows, -1)[:, :depth].astype(np.int64), scale


def expected(x: F32, weights: PackedWeights) -> NDArray[np.float64]:
    """Exact sums of integers group by group, scaled and added in float64."""
    numbers, scale = rounded(x, weights.group)
    where = np.arange(x.shape[1]) // weights.group
    values: NDArray[np.float64] = (numbers * scale.astype(np.float64)[:, where]) @ weights.values.T
    return values


def assert_close(y: F32, reference: NDArray[np.float64], x: F32, weights: PackedWeights) -> None:
    """Within the rounding of float32 sums of so many terms."""
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weights.values).T
    assert (np.abs(y - reference) <= 2e-6 * magnitude + 1e-30).all()


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    bits = draw(st.sampled_from([8, 4]))
    depth = draw(st.integers(1, 300))
    return {
        "bits": bits,
        "group": draw(st.sampled_from([16, 32, 64, 128, depth + depth % 2])),
        "columns": draw(st.integers(1, 70)),
        "depth": depth,
        "zero_points": draw(st.booleans()),
        "rows": draw(st.integers(1, 40)),
        "seed": draw(st.integers(0, 1000)),
        "activations": draw(st.sampled_from(["int8", "int8", "none"])),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_ragged_shapes_on_all_instruction_sets(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(case["seed"])
    sizes = {name: case[name] for name in ("bits", "group", "columns", "depth", "zero_points")}
    weights = random_weights(generator, **sizes)
    x = generator.standard_normal((case["rows"], case["depth"]), np.float32)
    results = []
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        results.append(node(weights, tmp_path, case["activations"])(x=x)[0])
    reference = expected(x, weights) if case["activations"] == "int8" else x.astype(np.float64) @ weights.values.T
    assert_close(results[0], reference, x, weights)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, 512])
def test_integers_are_exact(bits: int, zero_points: bool, group: int, tmp_path: Path) -> None:
    """Numbers that rounding keeps, scales of 1: the largest sums that there are, and random ones."""
    generator = np.random.default_rng(bits + group)
    weights = random_weights(generator, bits, group, 40, 512, zero_points)
    weights.scale[:] = 1
    weights.blocks[:4] = 255
    weights.blocks[4:8] = 0
    numbers = weights.numbers.copy()
    numbers[:4], numbers[4:8] = (1 << bits) - 1, 0
    x = generator.integers(-127, 128, (19, 512)).astype(np.float32)
    x[:, ::group] = 127
    x[0], x[1] = 127, -127
    where = np.arange(512) // group
    exact = x.astype(np.int64) @ (numbers - weights.zeros[:, where]).T
    np.testing.assert_array_equal(node(weights, tmp_path)(x=x)[0], exact.astype(np.float32))


@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize(
    ("bits", "group", "zero_points"), [(8, 32, False), (8, 64, True), (4, 32, True), (4, 128, False)]
)
def test_rows_do_not_depend_on_batch_or_threads(
    activations: str, bits: int, group: int, zero_points: bool, tmp_path: Path
) -> None:
    generator = np.random.default_rng(3)
    weights = random_weights(generator, bits, group, 600, 1000, zero_points)
    x = generator.standard_normal((150, 1000), np.float32)
    together = node(weights, tmp_path, activations, threads=2)(x=x)[0]
    alone = node(weights, tmp_path, activations, threads=1)
    begin = 0
    for rows in (1, 2, 3, 4, 7, 8, 9, 16, 33, 67):
        part = slice(begin, begin + rows)
        np.testing.assert_array_equal(alone(x=x[part])[0], together[part], err_msg=f"{rows} rows")
        begin += rows


@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize(
    ("bits", "group", "zero_points"), [(8, 32, False), (8, 96, True), (4, 32, False), (4, 64, True)]
)
def test_narrow_scales_give_the_same_bits(
    activations: str, bits: int, group: int, zero_points: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scale that bfloat16 does not have makes all of a matrix wide; the other columns must not notice."""
    generator = np.random.default_rng(5)
    narrowed = random_weights(generator, bits, group, 50, 357, zero_points)
    wide = replace(narrowed, scale=narrowed.scale.copy())
    wide.scale[-1, -1] = np.float32(0.1)
    x = generator.standard_normal((20, 357), np.float32)
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        for rows in (1, 3, 20):
            found = [node(each, tmp_path, activations)(x=x[:rows])[0] for each in (narrowed, wide)]
            np.testing.assert_array_equal(found[0][:, :-1], found[1][:, :-1])
            assert (found[0][:, -1] != found[1][:, -1]).all()


def test_what_is_not_finite_stays_in_its_row(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    weights = random_weights(generator, 8, 32, 48, 96, False)
    x = generator.standard_normal((5, 96), np.float32)
    x[1, 40], x[3, 0], x[4] = np.nan, np.inf, 0
    y = node(weights, tmp_path)(x=x)[0]
    assert np.isnan(y[[1, 3]]).all()
    assert (y[4] == 0).all()
    np.testing.assert_array_equal(y[[0, 2]], node(weights, tmp_path)(x=x[[0, 2]])[0])


def test_rounding_is_that_of_a_division(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotients that are halves or next to them, by scales of all sizes: one wrong number shows in the sum."""
    generator = np.random.default_rng(5)
    weights = random_weights(generator, 8, 32, 1, 4096, False)
    scale = generator.uniform(1, 2, (64, 128)).astype(np.float32)
    scale *= np.exp2(generator.integers(-140, 100, scale.shape)).astype(np.float32)
    halves = (generator.integers(-254, 255, (64, 128, 32)) / 2).astype(np.float32)
    halves[..., 0] = 127
    x = np.nextafter(halves * scale[..., None], generator.choice([-np.inf, 0, np.inf], halves.shape).astype(np.float32))
    results = []
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        results.append(node(weights, tmp_path)(x=x.reshape(64, -1))[0])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_no_rows(tmp_path: Path) -> None:
    weights = random_weights(np.random.default_rng(0), 8, 32, 5, 64, False)
    assert node(weights, tmp_path)(x=np.zeros((0, 64), np.float32))[0].shape == (0, 5)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    weights = random_weights(np.random.default_rng(0), 8, 32, 5, 64, False)
    attributes: dict[str, int | float | str] = {"K": 64, "N": 5, "bits": 8, "group": 32, "activations": "int8"}
    x = np.zeros((1, 1), np.float32)
    for wrong, message in [
        ({"bits": 3}, "bits: expected 8 or 4, got 3"),
        ({"activations": "fp8"}, "activations: expected int8 or none, got fp8"),
        ({"K": 65}, "blocks: expected"),
        ({"group": 0}, "group, N and K: expected positive numbers"),
        ({"K": 1 << 20, "group": 1 << 20}, "group: expected at most 65536"),
    ]:
        with pytest.raises(RuntimeException, match=message):
            OneNode("LinearInt", {"x": x}, weights.inputs(), attributes | wrong, folder=tmp_path)
    with pytest.raises(Fail, match=r"x: expected \[..., 64\], got \[1, 65\]"):
        node(weights, tmp_path)(x=np.zeros((1, 65), np.float32))
