"""What a result says about the command that made it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.command import finish, frame, speed_options
from benchmarks.models import Models


def test_the_command_is_recorded_without_the_machines_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--preset", "smoke", "--models", str(tmp_path), f"--work-dir={tmp_path}", "--threads", "1,4"]
    monkeypatch.setattr(sys, "argv", ["decode.py", *arguments])
    options = speed_options("What it is.", prefill_tokens="128,512").parse_args()
    assert (options.threads, options.prefill_tokens) == ((1, 4), (128, 512))
    found = frame("decode", options, Models(tmp_path, "smoke"))
    assert found["command"] == "python benchmarks/decode.py --preset smoke --threads 1,4"
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize(("agree", "code"), [([True, True], 0), ([True, False], 1)])
def test_a_subject_that_computes_something_else_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agree: list[bool], code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["decode.py"])
    options = speed_options("", prefill_tokens="8").parse_args(["--json", str(tmp_path / "out.json")])
    found = {str(threads): {"agreement": {"x": {"agree": one}}} for threads, one in enumerate(agree, 1)}
    result = {"machine": {}, "threads": found}
    assert finish(result, options) == code
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["threads"] == found
    assert len(written["machine"]["load_average_after"]) == 3
