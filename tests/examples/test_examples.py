"""Every numbered example runs and says what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("[0-9][0-9]_*.py"))
PROMISES = {
    "01_build_and_generate.py": r"^built [\d.]+ MB\n.*the LORD.*\n",
    "02_compare_with_the_executor.py": r"^largest difference of a logit: \d\.\de-0[5-9]\n(layer 3, position .*\n){7}$",
    "03_ragged_batch.py": r"^('.*\(as alone\)\n){3}$",
    "04_find_a_planted_fault.py": r"first fault +layers\.2\.mlp\.experts: relative error of a row",
}


def test_every_example_has_a_promise() -> None:
    assert {path.name for path in EXAMPLES} == set(PROMISES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(path)]
    if path.name.startswith("04_"):
        command.append(str(tmp_path / "report.html"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(PROMISES[path.name], done.stdout, re.DOTALL), done.stdout
