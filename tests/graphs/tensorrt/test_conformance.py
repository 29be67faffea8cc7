"""`doctor --conformance` of TensorRT-RTX: built for real, and run on an emulated device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest

from dsv3export.graphs.conformance import Report, check_backend
from dsv3export.graphs.conformance import calls as table
from dsv3export.graphs.conformance.tensorrt_ops import TensorRTOps
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.graphs.lower.tensorrt.row import Row
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.support.command_line import run_here
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.tensorrt import EmulatedTensorRT

pytest.importorskip("tensorrt_rtx_bindings")
without_gpu = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")


def emulated_report(invalid: str = "") -> Report:
    """Of an emulated device; `invalid` is why TensorRT-RTX runs no engine on it, if it does not."""
    driver = EmulatedDriver()
    trt = EmulatedTensorRT(Recorder(load_tensorrt("tensorrt-rtx")), driver)
    if invalid:
        trt.validity = trt.EngineValidity.INVALID, int(trt.EngineInvalidityDiagnostics.__members__[invalid].value)
    report = check_backend(TensorRTOps("tensorrt-rtx", trt, Device(driver=Driver(driver))))
    assert driver.faults == []
    return report


def only(monkeypatch: pytest.MonkeyPatch, *precisions: str) -> None:
    """A shorter table."""
    monkeypatch.setattr(table, "_OPS", {precision: table._OPS[precision] for precision in precisions})


@pytest.mark.slow
def test_every_row_is_right_on_an_emulated_device() -> None:
    report = emulated_report()
    assert [row for row in report.rows if row.result == "fail"] == []
    refused = {row.op for row in report.rows if row.result == "refused"}
    assert refused == {"LatentAppendFp8"}
    assert report.count("pass") == table.call_count() - 2
    # 16-bit arithmetic shows, float32 does not hide behind its tolerance.
    assert all((row.error or 0) > 1e-3 for row in report.rows if row.precision == "bf16" and row.op == "Linear")
    assert all((row.error or 0) < 2e-6 for row in report.rows if row.precision == "fp32")


def test_a_wrong_row_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor]) -> Sequence[ITensor]:
        (product,) = right.emit(emitter, node, inputs)
        return [emitter.add(product, product)]

    only(monkeypatch, "int4")
    backend = TensorRTOps("tensorrt-rtx")
    right = backend._rows["dsv3", "LinearInt"]
    altered = {**backend._rows, ("dsv3", "LinearInt"): Row(doubled, right.inputs, right.packed, right.numbers)}
    monkeypatch.setattr("dsv3export.graphs.conformance.tensorrt_ops.rows_for", lambda flavour: altered)
    results = {(row.op, row.result): row.error for row in emulated_report().rows}
    assert results.keys() == {("LinearInt", "fail"), ("MoEExpertsInt", "pass")}
    assert results["LinearInt", "fail"] == pytest.approx(1, rel=0.01)


def test_a_row_that_tensorrt_refuses_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor]) -> Sequence[ITensor]:
        return [emitter.matmul(inputs[0], inputs[0])]

    only(monkeypatch, "int4")
    rows = {**TensorRTOps("tensorrt-rtx")._rows, ("dsv3", "LinearInt"): Row(refused)}
    monkeypatch.setattr("dsv3export.graphs.conformance.tensorrt_ops.rows_for", lambda flavour: rows)
    report = check_backend(TensorRTOps("tensorrt-rtx"))
    failed = [row for row in report.rows if row.result == "fail"]
    assert {row.op for row in failed} == {"LinearInt"}
    assert all("expected a network that it can build" in row.why for row in failed)


def test_a_gpu_that_tensorrt_rtx_does_not_run_on_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "int4")
    report = emulated_report("UNSUPPORTED_CC")
    assert {row.result for row in report.rows} == {"built"}
    assert "got UNSUPPORTED_CC. TensorRT-RTX runs on RTX GPUs" in report.why_not_run
    assert {row.result for row in emulated_report("VERSION_MISMATCH").rows} == {"fail"}


@without_gpu
def test_without_a_gpu_everything_is_built_and_nothing_run(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "fp32", "fp8")
    outcome = run_here("doctor", "--conformance", "--backend", "tensorrt-rtx", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    (found,) = json.loads(outcome.out)["backends"]
    assert found["counts"] == {"pass": 0, "fail": 0, "built": 16, "refused": 2}
    assert found["why_not_run"].startswith("no usable NVIDIA GPU")
    assert all(row["build_ms"] > 0 for row in found["rows"] if row["result"] == "built")
