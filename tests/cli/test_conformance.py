"""`dsv3export doctor --conformance`: what it prints, and its exit code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dsv3export.errors import BackendError
from dsv3export.graphs.conformance import Report, Verdict, backends
from dsv3export.graphs.conformance.calls import call_count
from dsv3export.graphs.conformance.check import OpBackend
from dsv3export.graphs.lower.onnxruntime import ops
from tests.support.command_line import run_here

ROW = Verdict("Linear", "fp32", "decode", "pass", 1e-7, 2e-5, 1.5, 0.25)


def only(monkeypatch: pytest.MonkeyPatch, *rows: Verdict, why_not_run: str = "") -> None:
    """Every backend is missing but for one, which finds these rows."""

    def open_backends(name: str) -> list[OpBackend | None]:
        if name != "tensorrt-rtx":
            raise BackendError(f"backend {name}", expected="a package", got="none")
        return [None]  # what `check_backend` is given, which is replaced below

    monkeypatch.setattr(backends, "open_backends", open_backends)
    report = Report("tensorrt-rtx", "1.2.3", why_not_run, rows)
    monkeypatch.setattr("dsv3export.graphs.conformance.check_backend", lambda *_: report)


def test_json_of_onnxruntime() -> None:
    outcome = run_here("doctor", "--conformance", "--backend", "onnxruntime", "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    found = json.loads(outcome.out)
    backend = found["backends"][0]
    assert (found["ok"], found["missing"], backend["backend"], backend["why_not_run"]) == (True, [], "onnxruntime", "")
    assert backend["counts"] == {"pass": call_count(), "fail": 0, "built": 0, "refused": 0}
    assert all(row["error"] <= row["tolerance"] for row in backend["rows"])


def test_a_planted_fault_is_shown_and_ends_in_1(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ops.ROWS["Linear"]
    text = "\nLinear (x, weight) => (y) {\n product = com.microsoft.FusedMatMul <transB = 1> (x, weight)\n"
    text += "y = Neg (product)\n}\n"
    monkeypatch.setattr(ops, "ROWS", {**ops.ROWS, "Linear": replace(row, function=lambda *_: text)})
    outcome = run_here("doctor", "--conformance", "--backend", "onnxruntime")
    assert (outcome.code, outcome.err) == (1, "")
    (line, _) = (line for line in outcome.out.splitlines() if "fail" in line)
    assert line.split()[:5] == ["Linear", "fp32", "decode", "fail", "2.0e+00"]
    assert "off by 2, allowed is 2e-05" in line
    assert f"onnxruntime: {call_count() - 2} rows right, 2 wrong, 0 built and not run, 0 refused" in outcome.out


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    built = replace(ROW, result="built", error=None, run_ms=None, why="no NVIDIA driver")
    refused = replace(built, op="LatentAppendFp8", result="refused", build_ms=None, why="no such cache")
    only(monkeypatch, built, refused, why_not_run="no NVIDIA driver")
    outcome = run_here("doctor", "--conformance")
    assert (outcome.code, outcome.err) == (0, "")
    assert "tensorrt-rtx: 0 rows right, 0 wrong, 1 built and not run, 1 refused" in outcome.out
    assert outcome.out.count("no NVIDIA driver") == 1 and "no such cache" in outcome.out
    assert "onnxruntime: not checked: backend onnxruntime: expected a package, got none" in outcome.out


def test_json_has_no_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, ROW, replace(ROW, result="fail", error=float("inf"), why="off by inf"))
    outcome = run_here("doctor", "--conformance", "--json")
    found = json.loads(outcome.out)
    assert (outcome.code, found["ok"]) == (1, False)
    assert [row["error"] for row in found["backends"][0]["rows"]] == [1e-7, None]
    assert [gap["backend"] for gap in found["missing"]] == ["onnxruntime", "tensorrt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "onnxruntime"), "--backend needs --conformance"),
        (("--conformance", "--probe"), "ask one at a time"),
        (("--conformance", "--backend", "tensorflow"), "'tensorflow' is not one of"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    outcome = run_here("doctor", *arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err


def test_a_backend_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    outcome = run_here("doctor", "--conformance", "--backend", "tensorrt")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "dsv3export: error: backend tensorrt: expected a package, got none\n"
