"""At DeepSeek-V3's shapes: what is built, and that no more of the weights than is used becomes numbers in memory."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import pytest

from dsv3export.engine.program import Phase
from dsv3export.graphs.lower.tensorrt.objects import Module
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.graphs.tensorrt.one_op import Ports, Shape, built_of_shapes
from tests.graphs.tensorrt.rows.plan_memory import largest_buffer

EXPERTS, WIDTH, HIDDEN, CHOSEN = 256, 2048, 7168, 8
HEADS, NOPE, ROPE, VALUE, LATENT = 128, 128, 64, 128, 512
MIB = 1 << 20
F32, BF16, F8, U8, I64 = (
    getattr(ir.DataType, name) for name in ("FLOAT", "BFLOAT16", "FLOAT8E4M3FN", "UINT8", "INT64")
)
_TOKENS: Ports = {
    "x": (F32, ("T", HIDDEN)), "ids": (I64, ("T", CHOSEN)), "weights": (F32, ("T", CHOSEN)),
}  # fmt: skip
_QUERIES: Ports = {
    "q_nope": (F32, ("B", "S", HEADS, NOPE)), "q_pe": (F32, ("B", "S", HEADS, ROPE)),
    "cache": (F32, ("B", "C", LATENT + ROPE)),
}  # fmt: skip
_OUT = {"out": ("B", "S", HEADS * VALUE)}
_Y = {"y": ("T", HIDDEN)}


def _banks(dtype: ir.DataType, per_byte: int, scale: tuple[int, int] | None) -> Ports:
    """gate, up and down, each followed by its scales, of blocks of these rows and columns."""
    ports: dict[str, tuple[ir.DataType, Shape]] = {}
    for bank, rows, columns in (("gate", WIDTH, HIDDEN), ("up", WIDTH, HIDDEN), ("down", HIDDEN, WIDTH)):
        ports[bank] = dtype, (EXPERTS, rows, columns // per_byte)
        if scale is not None:
            ports[f"{bank}_scale"] = F32, (EXPERTS, rows // scale[0], columns // scale[1])
    return ports


def _int(bits: int) -> Mapping[str, int | str]:
    return {"bits": bits, "group": 128, "activations": "none"}


EXPERT_OPS = {
    "bf16": ("MoEExperts", _banks(BF16, 1, None), {}),
    "fp8": ("MoEExpertsFp8Block", _banks(F8, 1, (128, 128)), {"activations": "none"}),
    "int8": ("MoEExpertsInt", _banks(U8, 1, (1, 128)), _int(8)),
    "int4": ("MoEExpertsInt", _banks(U8, 2, (1, 128)), _int(4)),
}


@pytest.fixture(scope="module")
def trt() -> Module:
    pytest.importorskip("tensorrt_rtx_bindings")
    return load_tensorrt("tensorrt-rtx")


@pytest.mark.parametrize("precision", EXPERT_OPS)
def test_a_decode_step_makes_no_numbers_of_experts_in_memory(trt: Module, precision: str) -> None:
    op, banks, attributes = EXPERT_OPS[precision]
    plan = built_of_shapes(trt, op, {**_TOKENS, **banks}, _Y, attributes, "decode", {"T": (1, 8, 16)})
    # A token's 8 chosen rows of 7168 numbers in float32, and a little.
    assert largest_buffer(plan) < MIB
    assert len(plan) < 4 * MIB


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_a_prefill_makes_numbers_of_some_experts_at_a_time(trt: Module, precision: str) -> None:
    op, banks, attributes = EXPERT_OPS[precision]
    plan = built_of_shapes(trt, op, {**_TOKENS, **banks}, _Y, attributes, "prefill", {"T": (1, 256, 512)})
    assert 100 * MIB < largest_buffer(plan) <= 256 * MIB
    assert len(plan) < 4 * MIB


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_attention_holds_its_two_matrices_and_no_table_of_scores(trt: Module, phase: Phase) -> None:
    kv_b: Ports = {
        "kv_b": (F8, (HEADS * (NOPE + VALUE), LATENT)), "kv_b_scale": (F32, (256, 4)), "start": (I64, ("B",)),
    }  # fmt: skip
    sizes = {"B": (1, 8, 8), "S": (1, 1, 2)} if phase == "decode" else {"B": (1, 1, 2), "S": (1, 256, 512)}
    attributes = {"scale": 0.13, "activations": "none"}
    plan = built_of_shapes(trt, "MlaAttentionFp8Block", {**_QUERIES, **kv_b}, _OUT, attributes, phase, sizes)
    assert largest_buffer(plan) == HEADS * NOPE * LATENT * 2
    assert len(plan) < 4 * MIB


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_weight_becomes_numbers_in_memory_in_a_prefill_only(trt: Module, phase: Phase) -> None:
    rows, columns = 18432, HIDDEN
    ports: Ports = {
        "x": (F32, ("B", "S", columns)), "weight": (F8, (rows, columns)), "scale": (F32, (144, 56)),
    }  # fmt: skip
    y = {"y": ("B", "S", rows)}
    sizes = {"B": (1, 1, 2), "S": (1, 1, 2)}
    plan = built_of_shapes(trt, "LinearFp8Block", ports, y, {"activations": "none"}, phase, sizes)
    assert largest_buffer(plan) == (rows * columns * 2 if phase == "prefill" else rows * 4)


def test_a_step_of_many_tokens_makes_a_weight_into_numbers_once(trt: Module) -> None:
    ports: Ports = {"x": (F32, ("B", "S", HIDDEN)), "weight": (F8, (256, HIDDEN)), "scale": (F32, (2, 56))}
    plans = [
        built_of_shapes(
            trt, "LinearFp8Block", ports, {"y": ("B", "S", 256)}, {"activations": "none"}, "decode",
            {"B": (1, tokens, tokens), "S": (1, 1, 1)}, step_tokens=tokens,
        )
        for tokens in (32, 33)
    ]  # fmt: skip
    assert [largest_buffer(plan) for plan in plans] == [256 * 4, 256 * HIDDEN * 2]
