"""What plugins cost at least, counted by hand, and how many programs a multiprocessor holds."""

from __future__ import annotations

import pytest

from dsv3export.plugins.kernels.catalogue import PLUGINS, USES
from dsv3export.plugins.kernels.compiler import TARGETS, Compiled
from dsv3export.plugins.kernels.costs import Cost, cost
from dsv3export.plugins.kernels.occupancy import MULTIPROCESSORS
from dsv3export.plugins.kernels.plugin import Attribute, TensorType
from dsv3export.sizing.devices import DEVICES


def of(plugin: str, *inputs: tuple[str, tuple[int, ...]], **attributes: Attribute) -> Cost:
    return cost(PLUGINS[plugin], [TensorType(dtype, shape) for dtype, shape in inputs], attributes)


def test_a_linear() -> None:
    given = ("F8_E4M3", (8, 256)), ("F32", (8, 2)), ("F8_E4M3", (384, 256)), ("F32", (3, 2))
    whole = of("Fp8BlockGemm", *given, dtype="BF16", parts=1)
    read = 8 * 256 + 8 * 2 * 4 + 384 * 256 + 3 * 2 * 4
    assert whole == Cost(read + 8 * 384 * 2, 2 * 8 * 384 * 256, "fp8")
    assert of("Fp8BlockGemm", *given, dtype="BF16", parts=4) == Cost(read + 4 * 8 * 384 * 4, whole.flops, "fp8")
    integers: dict[str, Attribute] = {"bits": 4, "group": 64, "activations": "none", "parts": 1}
    packed = of("LinearInt", ("BF16", (3, 2, 64)), ("U8", (10, 32)), ("F32", (10, 1)), **integers)
    assert packed == Cost(6 * 64 * 2 + 10 * 32 + 10 * 4 + 6 * 10 * 2, 2 * 6 * 10 * 64, "bf16")


def test_attention() -> None:
    queries = ("BF16", (2, 3, 4, 32)), ("BF16", (2, 3, 4, 16))
    decode = of("MlaSplit", *queries, ("BF16", (2, 1, 100, 48)), ("I64", (2,)), scale=1.0, parts=2, dtype="BF16")
    assert decode.flops == 2 * (2 * 3 * 4) * 100 * (32 + 16 + 32)
    assert decode.bytes == 24 * 48 * 2 + 2 * 100 * 48 * 2 + 16 + 24 * 2 * 32 * 4 + 24 * 2 * 4
    eighths = ("F8_E4M3", (2, 1, 100, 32)), ("BF16", (2, 1, 100, 18))
    narrow = of("MlaSplitFp8", *queries, *eighths, ("I64", (2,)), scale=1.0, parts=2, dtype="BF16")
    assert (narrow.flops, decode.bytes - narrow.bytes) == (decode.flops, 200 * (96 - 32 - 36))
    whole = ("BF16", (1, 64, 2, 8)), ("BF16", (1, 64, 2, 4)), ("BF16", (1, 64, 2, 16)), ("BF16", (1, 1, 64, 36))
    prefill = of("MlaPrefill", *whole, ("I64", (1,)), scale=1.0, value=8)
    assert prefill.flops == 2 * 2 * 64 * 32 * (8 + 4 + 8)


def test_rows_into_the_cache_leave_the_rest() -> None:
    rows = ("BF16", (2, 1, 32)), ("BF16", (2, 1, 16))
    appended = of("LatentAppend", ("BF16", (2, 1, 4096, 48)), *rows, ("I64", (2,)))
    assert appended.bytes == 2 * (2 * 48 * 2) + 16


def test_experts_that_no_token_chose_are_not_read() -> None:
    bank = ("BF16", (256, 64, 32))
    few = of("MoEDown", ("BF16", (1, 32)), ("I32", (16,)), ("I32", (1,)), bank, block=16)
    assert few.bytes == 64 + 64 + 4 + 64 * 32 * 2 + 128
    many = of("MoEDown", ("BF16", (4096, 32)), ("I32", (4096,)), ("I32", (256,)), bank, block=16)
    assert many.bytes == pytest.approx(256 * 64 * 32 * 2 + 4096 * (64 + 128) + 4096 * 4 + 1024, rel=1e-3)


def test_the_floor_is_that_of_the_slower_of_memory_and_products() -> None:
    h100 = DEVICES["h100"]
    assert Cost(3_350_000_000, 0, "bf16").floor(h100) == pytest.approx(1e-3)
    assert Cost(1, 1_979 * 10**9, "fp8").floor(h100) == pytest.approx(1e-3)


def test_each_use_has_a_cost() -> None:
    products = ("Gemm", "LinearInt", "MoEGateUp", "MoEDown", "MlaSplit", "MlaPrefill")
    for use in USES:
        work = cost(PLUGINS[use.plugin], use.inputs, use.attributes)
        assert work.bytes > 0
        assert (work.flops > 0) == any(name in use.plugin for name in products), use.plugin


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "held"),
    [(32, 128, 0, 16), (128, 128, 0, 4), (129, 128, 0, 3), (255, 256, 0, 1), (32, 128, 48 * 1024, 4), (32, 32, 0, 32)],
)
def test_programs_that_hopper_holds(registers: int, threads: int, shared: int, held: int) -> None:
    assert MULTIPROCESSORS[90].holds(Compiled("k", "", threads, shared, registers, 0, {})) == held


def test_each_target_has_a_device() -> None:
    assert set(MULTIPROCESSORS) == set(TARGETS)
    assert {processor.device for processor in MULTIPROCESSORS.values()} <= set(DEVICES)
