"""The benchmark's shapes are those of the goals, and its floors count what has to be moved and computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.shapes import CASES, KERNELS, LINEARS, QUICK, TINY, Case, Floor, floor_of


def test_all_shapes_that_are_asked_for_are_there() -> None:
    assert len(CASES) == len(set(CASES))
    for rows, inner in LINEARS:
        for tokens in (1, 8, 64, 128, 4096):
            assert Case.of("fp8_gemm", M=tokens, N=rows, K=inner) in CASES
    assert LINEARS == ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
    decode = [dict(case.sizes) for case in CASES if case.kernel == "mla_decode"]
    assert {each["heads"] for each in decode} == {16, 128}
    assert {each["batch"] for each in decode} >= {1, 128}
    assert {each["length"] for each in decode} >= {1024, 4096, 32768}
    experts = [case for case in CASES if case.kernel == "moe_experts"]
    assert {case.number("tokens") for case in experts} == {1, 8, 128, 2048}
    assert {case.kernel for case in CASES} == {case.kernel for case in TINY} == {case.kernel for case in QUICK}
    assert {case.kernel for case in CASES} == set(KERNELS)
    assert set(CASES) >= QUICK


@pytest.mark.parametrize(
    ("case", "nbytes", "flops"),
    [
        # x 64 x 7168, scales 64 x 56 and 17 x 56, weights 2112 x 7168, y 64 x 2112 in two bytes
        (Case.of("fp8_gemm", M=64, N=2112, K=7168), 458_752 + 14_336 + 3_808 + 15_138_816 + 270_336, 1_937_768_448),
        # a row of 576 in bf16 for each token of 128 x 4096, and 128 x 16 rows of q and of the result
        (
            Case.of("mla_decode", cache="bf16", heads=16, batch=128, length=4096, queries=1),
            128 * 4096 * 1152 + 128 * 16 * 2 * (576 + 512),
            2 * 128 * 16 * 4096 * (576 + 512),
        ),
        # 512 e4m3, 64 of k_pe and 4 scales in bf16
        (
            Case.of("mla_decode", cache="fp8", heads=16, batch=1, length=1024, queries=1),
            1024 * 648 + 16 * 2 * (576 + 512),
            2 * 16 * 1024 * (576 + 512),
        ),
        (Case.of("int_gemm", bits=4, M=1, N=7168, K=2048), 4096 + 7_340_032 + 458_752 + 14_336, 29_360_128),
        (Case.of("mla_prefill", heads=1, batch=1, queries=2, cached=1), 2 * (3 * 320 + 2 * 320), 2 * (2 + 3) * 320),
    ],
)
def test_floors(case: Case, nbytes: int, flops: int) -> None:
    floor = floor_of(case)
    assert (floor.bytes, floor.flops) == (nbytes, flops)


def test_experts_are_read_that_were_chosen() -> None:
    case = Case.of("moe_experts", format="fp8", tokens=128)
    one, all_of_them = floor_of(case, experts_hit=1), floor_of(case, experts_hit=256)
    assert all_of_them.bytes - one.bytes == 255 * (3 * 7168 * 2048 + 3 * 4 * 56 * 16)
    assert one.flops == all_of_them.flops == 2 * 128 * 8 * 3 * 7168 * 2048


@given(st.integers(1, 10**12), st.integers(0, 10**15))
def test_a_floor_is_the_longer_of_both(nbytes: int, flops: int) -> None:
    floor = Floor(nbytes, flops, "fp8")
    assert floor.seconds(1e12, {"fp8": 1e15}) == max(nbytes / 1e12, flops / 1e15)
    assert floor.seconds(1e12, {}) == nbytes / 1e12
