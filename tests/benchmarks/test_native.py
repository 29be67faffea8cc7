"""benchmarks/native.py on tiny shapes: it runs, and its figures agree with each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import native
from dsv3export.runtime import cpu_kernels

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")


def test_measures_each_projection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "native.json"
    arguments = ["--preset", "smoke", "--names", "o,head", "--rows", "1,20", "--threads", "1", "--seconds", "0"]
    assert native.main([*arguments, "--cold-bytes", "100000", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    names = [(row["projection"]["name"], row["projection"]["bits"], row["rows"]) for row in document["results"]]
    assert names == [("o", 8, 1), ("o", 8, 20), ("head", 8, 1), ("head", 8, 20), ("o", 4, 1), ("o", 4, 20)]
    for row in document["results"]:
        one = row["projection"]
        assert row["gop_per_second"] == pytest.approx(
            2e-9 * row["rows"] * one["columns"] * one["depth"] / row["native_seconds"], rel=0.01, abs=0.06
        )
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(names)


def test_shapes_of_the_model() -> None:
    by_name = {(one.name, one.bits): one for one in native.projections("0.5b")}
    assert (by_name["o", 8].columns, by_name["o", 8].depth) == (1024, 2048)
    assert (by_name["q_b", 4].columns, by_name["q_b", 4].depth) == (3072, 768)
    assert ("head", 4) not in by_name
    # 1024 x 2048 numbers and a scale for each 32
    assert by_name["o", 8].nbytes == 1024 * 2048 * 36 // 32
