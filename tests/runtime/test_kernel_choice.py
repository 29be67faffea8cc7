"""Which kernels an engine gets on the CPU, and the one line where it cannot get those that were asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx
import pytest

from dsv3export import Engine
from dsv3export.cli.capabilities import CPU_KERNELS
from dsv3export.engine.manifest import MANIFEST_NAME, Manifest
from dsv3export.engine.native_graphs import native_graphs
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError, RequestError
from dsv3export.runtime import cpu_kernels
from dsv3export.runtime.cpu_kernels import DOMAIN, Description
from dsv3export.runtime.kernel_choice import CpuKernels, choose_kernels
from dsv3export.runtime.onnx_ops import ops_of_functions
from tests.support.command_line import assert_refused, run_here

ALL = (
    "Linear", "LinearInt", "LinearFp8Block", "MlaAttention", "MoERoute", "MoEExperts", "MoEExpertsInt",
    "MoEExpertsFp8Block",
)  # fmt: skip


@pytest.fixture
def files(engine_of: Callable[[str], Path]) -> EngineFiles:
    return EngineFiles.open(engine_of("bf16"))


@pytest.fixture
def old_engine(engine_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """As versions before the native kernels wrote it."""
    path = tmp_path / "old.engine"
    shutil.copytree(engine_of("bf16"), path)
    manifest = Manifest.read(path)
    kept = {name: graph for name, graph in manifest.graphs.items() if name not in native_graphs(manifest)}
    (path / MANIFEST_NAME).write_text(replace(manifest, graphs=kept).to_json())
    return path


def library(monkeypatch: pytest.MonkeyPatch, *ops: str) -> None:
    description = Description(Path("library.so"), "avx2", "avx512", "g++", ops, weight_bytes=0) if ops else None
    monkeypatch.setattr(cpu_kernels, "describe", lambda: description)


def test_the_command_line_offers_them_all() -> None:
    assert get_args(CpuKernels) == CPU_KERNELS


def test_native_ones_are_taken_where_there_are_some(files: EngineFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, *ALL)
    assert choose_kernels(files, "cpu") == choose_kernels(files, "cpu", "native") == "native"
    assert choose_kernels(files, "cpu", "onnxruntime") == choose_kernels(files, "cuda") == "onnxruntime"


def test_without_a_library(files: EngineFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch)
    assert choose_kernels(files, "cpu") == "onnxruntime"
    with pytest.raises(BackendError, match=r"native CPU kernels: got none: they were not compiled\. Install a C"):
        choose_kernels(files, "cpu", "native")


def test_a_library_that_lacks_a_kernel(files: EngineFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, "Other")
    assert choose_kernels(files, "cpu") == "onnxruntime"
    with pytest.raises(BackendError, match=r"expected a kernel L.*got Other"):
        choose_kernels(files, "cpu", "native")


def test_an_old_engine_runs_as_ever(old_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, *ALL)
    engine = Engine.load(old_engine, threads=1)
    assert (engine.cpu_kernels, len(engine.generate([5, 6], 2).token_ids)) == ("onnxruntime", 2)


def test_an_engine_without_graphs_for_them(old_engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library(monkeypatch, *ALL)
    outcome = run_here("run", old_engine, "--prompt", "x", "--cpu-kernels", "native")
    assert_refused(outcome, ("expected graphs for them", "got none", "Rebuild it"), tmp_path)


def test_a_command_without_a_library(files: EngineFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library(monkeypatch)
    outcome = run_here("bench", files.path, "--cpu-kernels", "native")
    assert_refused(outcome, ("native CPU kernels", "not compiled", "C++ compiler"), tmp_path)


def test_another_device(files: EngineFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, *ALL)
    with pytest.raises(BackendError, match="expected provider cpu, got cuda"):
        choose_kernels(files, "cuda", "native")


def test_a_name_that_is_none(files: EngineFiles) -> None:
    with pytest.raises(RequestError, match=r"cpu_kernels: expected one of auto, native, onnxruntime, got 'mkl'"):
        Engine.load(files.path, cpu_kernels="mkl")  # type: ignore[arg-type]


def test_ops_that_a_graph_calls(files: EngineFiles) -> None:
    for name in native_graphs(files.manifest):
        data = files.graph(name)
        model = onnx.load_from_string(data)
        called = {node.op_type for function in model.functions for node in function.node if node.domain == DOMAIN}
        assert ops_of_functions(data, DOMAIN) == called != set()
    assert ops_of_functions(files.graph("trunk"), DOMAIN) == set()


def test_invariance_takes_native_ones(files: EngineFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library(monkeypatch, *ALL)
    assert choose_kernels(files, "cpu", invariant=True) == "native"
    outcome = run_here("run", files.path, "--prompt", "x", "--invariant", "--cpu-kernels", "onnxruntime")
    assert_refused(outcome, ("invariant", "expected native CPU kernels", "got onnxruntime"), tmp_path)
    library(monkeypatch)
    with pytest.raises(BackendError, match="not compiled"):
        choose_kernels(files, "cpu", invariant=True)
