"""`dsv3export graph`: text and ONNX."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import onnx
import pytest

from dsv3export.cli.graph import write_atomically
from dsv3export.cli.onnx_nodes import count_nodes
from dsv3export.config import ModelConfig
from dsv3export.errors import ResourceError
from dsv3export.graphs import graph_for, print_graph
from tests.support.command_line import assert_refused, run_here


def test_text_is_that_of_the_library(tiny_fp8: Path, tiny_engine: Path) -> None:
    expected = print_graph(graph_for(ModelConfig.from_file(tiny_fp8 / "config.json")))
    for model in (tiny_fp8, tiny_fp8 / "config.json", tiny_engine):
        outcome = run_here("graph", model)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out == expected


def test_needs_no_weights(tiny_fp8: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tiny_fp8 / "config.json")
    assert run_here("graph", tmp_path).code == 0


def test_mtp_part(tiny_fp8: Path) -> None:
    outcome = run_here("graph", tiny_fp8, "--part", "mtp")
    assert "function mtp_layer (" in outcome.out
    assert "function dense_layer (" not in outcome.out


def test_onnx_file(tiny_fp8: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    outcome = run_here("graph", tiny_fp8, "--onnx", file)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", f"wrote {file}\n")
    model = onnx.load(str(file))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["embed", "dense_layer", *["moe_layer"] * 3, "head"]
    assert "input_ids" in {value.name for value in model.graph.input}
    assert os.listdir(tmp_path) == ["model.onnx"]
    functions = sum(len(function.node) for function in model.functions)
    assert count_nodes(file.read_bytes()) == (6, functions)


def test_bad_config_is_refused_before_torch_is_needed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert_refused(run_here("graph", tmp_path), ("/config.json", "llama"), tmp_path)


def test_written_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    umask = os.umask(0o022)
    try:
        write_atomically(file, b"old")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_atomically(file, "no bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"new"
    with pytest.raises(ResourceError, match="a folder"):
        write_atomically(tmp_path, b"")
    with pytest.raises(ResourceError, match="No such file"):
        write_atomically(tmp_path / "missing" / "file", b"")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x3a\x05abc", "a field of 5 bytes"),
        (b"\xff", "does not end"),
        (b"\x80" * 12, "does not end"),
        (b"\x3b", "type"),
    ],
)
def test_counting_nodes_of_what_is_no_onnx_file(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        count_nodes(data)


def test_counting_nodes_skips_other_fields() -> None:
    """A varint, a fixed64 and a fixed32 field, then a graph with two nodes and a name."""
    graph = b"\x0a\x00" + b"\x12\x01x" + b"\x0a\x00"
    model = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\x3a" + bytes([len(graph)]) + graph
    assert count_nodes(model) == (2, 0)
