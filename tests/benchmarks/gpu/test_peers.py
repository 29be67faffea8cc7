"""Those peers that torch has on a CPU compute what our kernels do."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.peers import peers_of
from benchmarks.gpu.shapes import TINY_MODEL, Case
from benchmarks.gpu.work import WORK, Source
from dsv3export.plugins.kernels.checks import distance

CASES = {
    "torch linear, bf16": Case.of("int_gemm", bits=4, M=3, N=64, K=256),
    "torch sdpa": Case.of("mla_decode", cache="bf16", heads=4, batch=2, length=128, queries=1),
    "torch _grouped_mm, bf16": Case.of("moe_experts", format="fp8", tokens=3),
}


@pytest.mark.parametrize("name", CASES)
def test_peers_give_the_reference(name: str) -> None:
    case = CASES[name]
    work = WORK[case.kernel](case, Source(torch.device("cpu"), model=TINY_MODEL), 2)
    run = dict(peers_of(case, work))[name]()
    part, reference = work.check(run(0))
    assert distance(part.reshape(reference.shape), reference) < 1e-2


@pytest.mark.parametrize("cached", [0, 5])
def test_prefill(cached: int) -> None:
    case = Case.of("mla_prefill", heads=2, batch=2, queries=6, cached=cached)
    work = WORK[case.kernel](case, Source(torch.device("cpu"), model=TINY_MODEL), 1)
    part, reference = work.check(dict(peers_of(case, work))["torch sdpa"]()(0))
    assert distance(part, reference) < 1e-2


def test_a_peer_for_another_format_says_so() -> None:
    case = Case.of("mla_decode", cache="fp8", heads=4, batch=2, length=128, queries=1)
    work = WORK[case.kernel](case, Source(torch.device("cpu"), model=TINY_MODEL), 1)
    with pytest.raises(NotImplementedError, match="bf16 cache"):
        dict(peers_of(case, work))["torch sdpa"]()
