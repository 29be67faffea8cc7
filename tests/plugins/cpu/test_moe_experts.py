"""dsv3.cpu::MoEExperts and MoEExpertsFp8Block: exact to float32's rounding, and one result whatever runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from dsv3export.plugins.moe_experts_fp8_block.op import moe_experts_fp8_block
from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.expert_weights import routed
from tests.plugins.cpu.instruction_sets import instruction_sets
from tests.plugins.cpu.one_node import OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

BLOCK = 128
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
FORMATS = ["float32", "bfloat16", "float16", "float8", "float8, rounded activations"]
X, IDS = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)


@dataclass(frozen=True)
class Banks:
    """Gate, up and down as they are stored, [E, N, K], and float8's scales; `format` is one of FORMATS."""

    format: str
    weights: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    scales: tuple[F32, F32, F32]

    @property
    def rounded(self) -> bool:
        return self.format.endswith("rounded activations")

    def values(self, bank: int, expert: int) -> F64:
        """Of a matrix [N, K]."""
        weight = self.weights[bank][expert].astype(np.float64)
        if not self.format.startswith("float8"):
            return weight
        rows, columns = (np.arange(size) // BLOCK for size in weight.shape)
        return weight * self.scales[bank][expert].astype(np.float64)[rows][:, columns]

    def node(self, folder: Path, threads: int = 2) -> OneNode:
        gate, up, down = self.weights
        inputs = {"x": X, "ids": IDS, "weights": X}
        named: Mapping[str, NDArray[Any] | None] = {"gate": gate, "up": up, "down": down}
        if self.format == "float32":
            named = {"gate_up": np.stack([gate, up], 2).reshape(len(gate), -1, gate.shape[2]), "down": down}
        if not self.format.startswith("float8"):
            return OneNode("MoEExperts", inputs, named, {}, folder=folder, threads=threads)
        named = dict(
            pair
            for name, weight, scale in zip(("gate", "up", "down"), self.weights, self.scales, strict=True)
            for pair in ((name, weight), (f"{name}_scale", scale))
        )
        attributes = {"activations": "1x128" if self.rounded else "none"}
        return OneNode("MoEExpertsFp8Block", inputs, named, attributes, folder=folder, threads=threads)


def random_banks(generator: np.random.Generator, format_: str, experts: int, model: int, hidden: int) -> Banks:
    dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}.get(
        format_, ml_dtypes.float8_e4m3fn
    )
    weights, scales = [], []
    for rows, depth in ((hidden, model), (hidden, model), (model, hidden)):
        values = generator.standard_normal((experts, rows, depth), np.float32)
        scale = generator.uniform(0.5, 2, (experts, -(-rows // BLOCK), -(-depth // BLOCK))).astype(np.float32)
        if format_.startswith("float8"):
            scale *= np.float32(depth**-0.5 / 64)
            values *= 64
        else:
            values *= np.float32(depth**-0.5)
        values[0, 0, : min(4, depth)] = (0, -0.0, 6e-8, 0.01)[:depth]  # subnormals of the narrow types
        weights.append(values.astype(dtype))
        scales.append(scale)
    return Banks(format_, (weights[0], weights[1], weights[2]), (scales[0], scales[1], scales[2]))


def rounded(x: F32 | F64) -> F64:
    """x rounded to float8 in groups of 128 of each row, and back."""
    rows, depth = x.shape
    padded = np.pad(x, ((0, 0), (0, -depth % BLOCK))).reshape(rows, -1, BLOCK).astype(np.float32)
    scale = np.abs(padded).max(axis=-1, keepdims=True) / np.float32(448)
    scale[scale < np.finfo(np.float32).tiny] = 1
    values: F64 = (padded / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    return values.reshape(rows, -1)[:, :depth]


def expected(x: F32, ids: NDArray[np.int64], weights: F32, banks: Banks) -> F64:
    def seen(rows: F32 | F64) -> F64:
        return rounded(rows) if banks.rounded else rows.astype(np.float64)

    y = np.zeros(x.shape)
    for expert in np.unique(ids):
        token, choice = np.nonzero(ids == expert)
        gate, up = (seen(x[token]) @ banks.values(bank, expert).T for bank in (0, 1))
        each = seen(gate / (1 + np.exp(-gate)) * up) @ banks.values(2, expert).T
        np.add.at(y, token, each * weights[token, choice, None])
    return y


def assert_close(y: F32, reference: F64, banks: Banks, exact: float) -> None:
    """Row by row; hidden values that are rounded to float8 may fall to the other side of a half."""
    assert y.shape == reference.shape
    error = np.linalg.norm(y - reference, axis=-1) / (np.linalg.norm(reference, axis=-1) + 1e-30)
    assert (error <= (0.03 if banks.rounded else exact)).all(), error.max()


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    experts = draw(st.integers(1, 9))
    return {
        "format": draw(st.sampled_from(FORMATS)),
        "experts": experts,
        "model": draw(st.integers(1, 300)),
        "hidden": draw(st.integers(1, 150)),
        "tokens": draw(st.integers(0, 30)),
        "k": draw(st.integers(1, experts)),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_ragged_shapes_on_all_instruction_sets(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(case["seed"])
    banks = random_banks(generator, case["format"], case["experts"], case["model"], case["hidden"])
    x = generator.standard_normal((case["tokens"], case["model"]), np.float32)
    ids, weights = routed(generator, case["tokens"], case["k"], case["experts"])
    results = []
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        results.append(banks.node(tmp_path)(x=x, ids=ids, weights=weights)[0])
    # where few numbers are added, little may be left of them
    assert_close(results[0], expected(x, ids, weights, banks), banks, exact=1e-4)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("format_", FORMATS)
def test_a_token_alone_and_in_any_company(format_: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    banks = random_banks(generator, format_, 8, 300, 200)
    x = generator.standard_normal((90, 300), np.float32)
    ids, weights = routed(generator, 90, 3, 8)
    together = banks.node(tmp_path, threads=2)(x=x, ids=ids, weights=weights)[0]
    assert_close(together, expected(x, ids, weights, banks), banks, exact=1e-6)
    alone = banks.node(tmp_path, threads=1)
    begin = 0
    for tokens in (1, 1, 2, 3, 5, 8, 13, 21, 34):
        part = slice(begin, begin + tokens)
        y = alone(x=x[part], ids=ids[part], weights=weights[part])[0]
        np.testing.assert_array_equal(y, together[part], err_msg=f"{tokens} tokens")
        begin += tokens


@pytest.mark.parametrize("activations", ["none", "1x128"])
def test_float8_agrees_with_the_torch_op(activations: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    banks = random_banks(generator, FORMATS[3 if activations == "none" else 4], 5, 384, 256)
    x = generator.standard_normal((17, 384), np.float32)
    ids, weights = routed(generator, 17, 2, 5)
    stored = [
        part
        for weight, scale in zip(banks.weights, banks.scales, strict=True)
        for part in (
            torch.from_numpy(weight.view(np.uint8)).view(torch.float8_e4m3fn),
            torch.from_numpy(scale),
        )
    ]
    tensors = (torch.from_numpy(x), torch.from_numpy(ids), torch.from_numpy(weights))
    reference = moe_experts_fp8_block(*tensors, *stored, activations).numpy()
    y = banks.node(tmp_path)(x=x, ids=ids, weights=weights)[0]
    assert np.linalg.norm(y - reference) / np.linalg.norm(reference) <= (2e-3 if banks.rounded else 1e-6)


@pytest.mark.parametrize("format_", FORMATS[3:])
def test_every_float8_number(format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 256 codes as weights of `down`, each column with one: its value comes out, NaN for NaN."""
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    first = np.eye(1, 256, dtype=np.float32).astype(ml_dtypes.float8_e4m3fn)[None]
    into, out = np.ones((1, 1, 2), np.float32), np.ones((1, 2, 1), np.float32)
    banks = Banks(format_, (first, first, codes.reshape(1, 256, 1)), (into, into, out))
    x, weights = 2 * np.eye(1, 256, dtype=np.float32), np.ones((1, 1), np.float32)
    hidden = np.float32(4 / (1 + np.exp(-2.0)))
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        (y,) = banks.node(tmp_path)(x=x, ids=np.zeros((1, 1), np.int64), weights=weights)
        np.testing.assert_allclose(y[0], codes.astype(np.float32) * hidden, rtol=1e-6)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    banks = random_banks(np.random.default_rng(0), "bfloat16", 2, 8, 6)
    gate, up, down = banks.weights
    inputs = {"x": X, "ids": IDS, "weights": X}
    for named, message in [
        ({"gate": gate, "up": up[:, :5], "down": down}, r"up: expected shape \[2, 6, 8\], got \[2, 5, 8\]"),
        ({"gate": gate, "up": up, "down": down.astype(np.float16)}, "expected float32, bfloat16 or float16, got"),
        ({"gate": gate, "up": up.astype(np.float32), "down": down}, "up: expected bfloat16, got float"),
    ]:
        with pytest.raises(RuntimeException, match=message):
            OneNode("MoEExperts", inputs, named, {}, folder=tmp_path)
