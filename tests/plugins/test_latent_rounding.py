"""Properties of what an fp8 cache keeps of a row, in torch and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.dtypes import NUMPY
from dsv3export.graphs.tensors import numpy_array
from dsv3export.plugins import OPS
from dsv3export.plugins.latent_append_fp8.op import append_and_read, rounded_rows
from tests.plugins.agreement import assert_agrees
from tests.plugins.cases import Array, Case
from tests.plugins.onnx_function import generic_text, run_function
from tests.plugins.test_torch_ops import call

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def kept(kv_c: Array, groups: int = 1) -> Array:
    """What attention sees of latents [S, Dc], float32 of that shape."""
    rows, rope = torch.from_numpy(kv_c[None]), torch.zeros(1, len(kv_c), 2)
    cache = torch.zeros(1, len(kv_c), kv_c.shape[1], dtype=torch.float8_e4m3fn)
    side = torch.zeros(1, len(kv_c), 2 + groups, dtype=torch.bfloat16)
    _, _, latent = append_and_read(cache, side, rows, rope, torch.zeros(1, dtype=torch.int64))
    return latent[0, :, :-2].numpy()


@given(st.lists(FLOATS, min_size=8, max_size=8))
def test_error_of_a_number(numbers: list[float]) -> None:
    """At most 2^-4 of the number, or 2^-10 of a unit where e4m3 has no more digits; and half a bfloat16's digit."""
    row = np.array([numbers], np.float32)
    unit = max(float(np.abs(row).max()), 1e-30) / 448
    bound = np.maximum(np.abs(row) * 2.0**-4, unit * 2.0**-10) * (1 + 2.0**-7) + np.abs(row) * 2.0**-8
    assert (np.abs(kept(row) - row.astype(np.float64)) <= bound).all()


@given(st.lists(FLOATS, min_size=8, max_size=8), st.integers(-20, 20))
def test_a_power_of_two_changes_nothing(numbers: list[float], exponent: int) -> None:
    row = np.array([numbers], np.float32)
    largest = np.abs(row).max()
    if 2.0**-70 < largest < 2.0**70:
        assert np.array_equal(kept(row * np.float32(2.0**exponent)), kept(row) * np.float32(2.0**exponent))


@given(st.lists(FLOATS, min_size=8, max_size=8))
def test_the_sign_changes_nothing_else(numbers: list[float]) -> None:
    row = np.array([numbers], np.float32)
    assert np.array_equal(kept(-row), -kept(row))


def test_groups_do_not_share_a_scale() -> None:
    row = np.concatenate([np.full(128, 1e-4, np.float32), np.full(128, 1e4, np.float32)])[None]
    np.testing.assert_allclose(kept(row, groups=2), row, rtol=2.0**-8)
    assert np.array_equal(kept(row, groups=1)[0, :128], np.zeros(128))


def test_zeros_stay_zeros() -> None:
    assert np.array_equal(kept(np.zeros((3, 8), np.float32)), np.zeros((3, 8)))


def test_every_code_is_read_as_its_number() -> None:
    """The 254 finite ones, through ONNX Runtime's bit operations, next to torch's cast."""
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    cache = np.zeros((1, 2, len(codes)), NUMPY["F8_E4M3"])
    cache[0, 0] = codes.view(NUMPY["F8_E4M3"])
    side = np.ones((1, 2, 3), NUMPY["BF16"])
    inputs = {
        "cache": cache,
        "side": side,
        "kv_c": cache[:, :1].astype(np.float32),
        "k_pe": np.ones((1, 1, 2), np.float32),
        "start": np.array([1]),
    }
    case = Case("LatentAppendFp8", "all codes", inputs, {})
    results = run_function(OPS[case.op], generic_text(case), inputs)
    assert np.array_equal(results[2][0, 0, :-2], codes.view(NUMPY["F8_E4M3"]).astype(np.float32))
    # Written again with the scale that makes 448 the largest, each keeps its code, the sign of zero included.
    assert np.array_equal(results[0][0, 1].view(np.uint8), codes)


@pytest.mark.parametrize("size", [448.0, 448.0 * (1 + 2.0**-9), 464.0, 1e9])
def test_the_largest_number_of_a_group_never_overflows(size: float) -> None:
    numbers, scale = rounded_rows(torch.tensor([[[size, -size, size / 3, 0.0]]], dtype=torch.float32), 1)
    assert np.isfinite(numpy_array(numbers).astype(np.float32)).all()
    assert abs(float(numbers[0, 0, 0].float() * scale.float()) / size - 1) < 2.0**-4


@st.composite
def appends(draw: st.DrawFn) -> Case:
    groups, width, rope = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    start = draw(st.lists(st.integers(0, 6), min_size=1, max_size=3))
    new = draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    sizes = np.exp(random.uniform(-20, 20, (len(start), new, groups, 1)))
    capacity = max(start) + new + draw(st.integers(0, 2))
    kv_c = (random.standard_normal((len(start), new, groups, width)) * sizes).reshape(len(start), new, -1)
    inputs = {
        "cache": random.standard_normal((len(start), capacity, groups * width)).astype(NUMPY["F8_E4M3"]),
        "side": random.standard_normal((len(start), capacity, rope + groups)).astype(NUMPY["BF16"]),
        "kv_c": kv_c.astype(np.float32),
        "k_pe": random.standard_normal((len(start), new, rope)).astype(np.float32) * 1e3,
        "start": np.array(start),
    }
    return Case("LatentAppendFp8", f"{start} {new} {groups}x{width}", inputs, {})


@settings(max_examples=40)
@given(appends())
def test_torch_and_onnx_runtime_keep_the_same(case: Case) -> None:
    results = run_function(OPS[case.op], generic_text(case), case.inputs)
    for port, ours, theirs in zip(OPS[case.op].outputs, call(case), results, strict=True):
        assert_agrees(case, port.name, theirs, np.asarray(numpy_array(ours), np.float64))
