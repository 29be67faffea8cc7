"""program.json of a rank: written and read back, and what is no whole program is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsv3export.engine.segments import AllReduce, Gather, Recv, Run, SegmentPart, SegmentProgram, Send
from dsv3export.errors import EngineError

PROGRAM = SegmentProgram(
    {
        "trunk": SegmentPart(
            ("ids",),
            ("logits",),
            (
                Recv("h"),
                Run("segment-000", ("ids", "h"), ("a", "b")),
                AllReduce("a", "tensor"),
                Run("segment-001", ("a", "b"), ("logits", "c")),
                Gather("logits", "stage", -1),
                Send("c"),
            ),
        )
    }
)


def test_round_trip() -> None:
    assert SegmentProgram.from_json(PROGRAM.to_json()) == PROGRAM


@pytest.mark.parametrize(
    ("step", "value", "message"),
    [
        (0, {"recv": "h", "from": "next"}, "from: expected 'previous'"),
        (1, {"run": "x", "inputs": ["ids", "z"], "outputs": ["a", "b"]}, r"steps\[1\]: expected values .* got 'z'"),
        (2, {"all_reduce": "a", "group": "world"}, "group: expected 'tensor' or 'stage'"),
        (2, {"all_reduce": "a", "gather": "a"}, "expected one of run"),
        (2, {"broadcast": "a"}, "expected one of run"),
        (3, {"run": "x", "inputs": [], "outputs": ["c"]}, r"steps\[4\]: expected values .* got 'logits'"),
        (4, {"gather": "logits", "group": "stage", "axis": 99}, "axis: expected an integer"),
        (5, {"send": "d", "to": "next"}, r"steps\[5\]: expected values .* got 'd'"),
    ],
)
def test_bad_steps(step: int, value: dict[str, Any], message: str) -> None:
    document = json.loads(PROGRAM.to_json())
    document["parts"]["trunk"]["steps"][step] = value
    with pytest.raises(EngineError, match=message):
        SegmentProgram.from_json(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "format: expected dsv3export-segments"),
        ("format_version", 2, "format_version: expected 1"),
        ("parts", {}, "parts: expected a trunk"),
    ],
)
def test_bad_documents(key: str, value: object, message: str) -> None:
    document = {**json.loads(PROGRAM.to_json()), key: value}
    with pytest.raises(EngineError, match=message):
        SegmentProgram.from_json(json.dumps(document).encode())
