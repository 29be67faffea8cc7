"""The conformance check: that its table covers every op, that right rows pass, and that wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dsv3export.errors import BackendError
from dsv3export.graphs.conformance import Report, check_backend
from dsv3export.graphs.conformance.calls import OpCall, call_count, calls
from dsv3export.graphs.conformance.check import BuiltOp
from dsv3export.graphs.conformance.one_op import one_op_graph
from dsv3export.graphs.conformance.onnxruntime_ops import OnnxRuntimeOps
from dsv3export.graphs.conformance.reference import error, expected
from dsv3export.graphs.lower.onnxruntime import ops
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.plugins import OPS
from tests.plugins.cases import Case


@pytest.fixture(scope="module")
def onnxruntime_report() -> Report:
    return check_backend(OnnxRuntimeOps())


def test_the_table_has_every_op() -> None:
    table = list(calls("none"))
    assert {call.op.name for call in table} == set(OPS)
    assert len(table) == call_count() == len({str(call) for call in table})


@pytest.mark.parametrize("call", [*calls("none")], ids=str)
def test_the_reference_is_the_float64_definition(call: OpCall) -> None:
    defined = Case(call.op.name, str(call), call.inputs, call.attributes).expected()
    want = dict(zip((port.name for port in call.op.outputs), defined, strict=True))
    got = expected(call, one_op_graph(call))
    assert error(call, want, got) < 2e-6


def test_onnxruntime_is_right_at_every_row(onnxruntime_report: Report) -> None:
    bad = [row for row in onnxruntime_report.rows if row.result != "pass"]
    assert not bad
    assert len(onnxruntime_report.rows) == call_count()
    assert all(row.error is not None and row.build_ms and row.run_ms for row in onnxruntime_report.rows)


def test_integer_activations_are_really_rounded(onnxruntime_report: Report) -> None:
    """Else the wide tolerance of these rows would be for nothing."""
    rounded = [row for row in onnxruntime_report.rows if row.op == "MlaAttentionInt"]
    assert all(row.error is not None and 1e-4 < row.error < row.tolerance for row in rounded if row.tolerance)


@pytest.mark.parametrize("factor", [1.001, -1.0])
def test_a_wrong_row_is_shown(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of Linear multiplies its result by a number that is not quite 1."""
    row = ops.ROWS["Linear"]
    text = f"""
Linear (x, weight) => (y) {{
    product = com.microsoft.FusedMatMul <transB = 1> (x, weight)
    factor = Constant <value_float = {factor}> ()
    y = Mul (product, factor)
}}
"""
    monkeypatch.setattr(ops, "ROWS", {**ops.ROWS, "Linear": replace(row, function=lambda dims, attributes: text)})
    report = check_backend(OnnxRuntimeOps())
    failed = {(row.op, row.precision, row.phase) for row in report.rows if row.result == "fail"}
    assert failed == {("Linear", "fp32", "decode"), ("Linear", "fp32", "prefill")}
    (first, _) = (row for row in report.rows if row.result == "fail")
    assert first.error == pytest.approx(abs(factor - 1), rel=1e-2)
    assert first.why.startswith("off by ")


def test_a_row_that_cannot_be_built_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ops.ROWS["LinearInt"]
    broken = replace(row, function=lambda *_: "\nLinearInt (x, blocks, scale) => (y) {\n y = Add (x, blocks)\n}\n")
    monkeypatch.setattr(ops, "ROWS", {**ops.ROWS, "LinearInt": broken})
    failed = [row for row in check_backend(OnnxRuntimeOps()).rows if row.result == "fail"]
    assert {(row.op, row.precision) for row in failed} == {("LinearInt", "int8"), ("LinearInt", "int4")}
    assert all(row.why.startswith("ONNX Runtime refuses LinearInt int") and row.error is None for row in failed)


class Replayed:
    """A backend that answers with altered outputs of the executor."""

    name, version, int_activations = "replayed", "1", "none"
    typed_caches, with_step = False, True

    def __init__(self, alter: Callable[[dict[str, Any]], None], why_not_run: str = "", refused: str = "") -> None:
        self.alter, self.why_not_run, self.refused = alter, why_not_run, refused

    def refusal(self, call: OpCall) -> str:
        return "no such kernel" if call.op.name == self.refused else ""

    def computes_in(self, call: OpCall) -> str:
        return "fp32"

    def build(self, call: OpCall, graph: GraphWithWeights) -> BuiltOp:
        outputs = {name: array.copy() for name, array in expected(call, graph).items()}
        self.alter(outputs)
        return Answer(outputs)


class Answer:
    def __init__(self, outputs: Mapping[str, Any]) -> None:
        self.outputs = outputs

    def run(self) -> Mapping[str, Any]:
        if not self.outputs:
            raise BackendError("lost the device")
        return self.outputs


def results(alter: Callable[[dict[str, Any]], None], **options: str) -> list[tuple[str, str]]:
    report = check_backend(Replayed(alter, **options))  # type: ignore[arg-type]  # a str is no Literal
    return sorted({(row.op, row.result) for row in report.rows})


def test_equal_outputs_pass() -> None:
    assert {result for _, result in results(lambda outputs: None)} == {"pass"}


def test_one_wrong_expert_fails() -> None:
    def swap(outputs: dict[str, Any]) -> None:
        if "ids" in outputs:
            outputs["ids"][0] = outputs["ids"][0][::-1].copy()

    assert [op for op, result in results(swap) if result == "fail"] == ["MoERoute"]


def test_a_row_of_the_cache_that_was_touched_fails() -> None:
    def touch(outputs: dict[str, Any]) -> None:
        if "updated" in outputs:
            outputs["updated"][0, -1] = 0

    failed = [op for op, result in results(touch) if result == "fail"]
    assert failed == ["LatentAppend", "LatentAppendFp8", "LatentAppendHalf"]


def test_nan_and_another_shape_fail() -> None:
    def spoil(outputs: dict[str, Any]) -> None:
        if "out" in outputs:
            outputs["out"][0, 0, 0] = np.nan
        if "y" in outputs:
            outputs["y"] = outputs["y"][:-1]

    failed = {op for op, result in results(spoil) if result == "fail"}
    assert failed == {op for op in OPS if op.startswith(("Linear", "MlaAttention", "MoEExperts"))}


def test_what_was_not_run_is_no_failure() -> None:
    report = check_backend(Replayed(lambda outputs: outputs.clear(), "no driver", "MoERoute"))  # type: ignore[arg-type]
    assert {row.result for row in report.rows} == {"built", "refused"}
    assert {row.why for row in report.rows} == {"no driver", "no such kernel"}
    assert (report.count("built"), report.count("refused"), report.why_not_run) == (call_count() - 2, 2, "no driver")


def test_a_run_that_fails_is_a_failure() -> None:
    assert {result for _, result in results(lambda outputs: outputs.clear())} == {"fail"}
