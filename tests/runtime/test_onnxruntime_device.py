"""Devices: what is said of those that are missing, and a session whose cache and weights lie in a device's memory."""

from __future__ import annotations

import gc
import shutil
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser

from dsv3export import Engine
from dsv3export.engine.manifest import Provider
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError, ResourceError
from dsv3export.runtime import onnxruntime_device
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.onnxruntime_device import Device, problems
from dsv3export.runtime.onnxruntime_module import ort
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession
from dsv3export.runtime.providers import ENTRIES
from tests.support.command_line import run_here

# What ONNX Runtime 1.31.1 says where CUDA's libraries, its driver, or memory are missing.
NO_LIBRARIES = (
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2465 onnxruntime::ProviderInfo_CUDA& "
    "onnxruntime::GetProviderInfo_CUDA() CUDA Provider not available, can't get interface for it\n"
)
NO_DRIVER = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, "
    "const char*, int) CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; "
    "hostname=vm ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ; "
    "expr=cudaSetDevice(info_.device_id); \n\n"
)
NO_MEMORY = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal("
    "size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 256\n"
)


class Elsewhere(Device):
    """A device whose memory is the CPU's, used in every way as if it were another's."""

    def __init__(self) -> None:
        super().__init__("cpu")

    @property
    def on_host(self) -> bool:
        return False

    @property
    def session_providers(self) -> list[tuple[str, dict[str, str]]]:
        return [(self.entry.ort_name, {})]


def pretend_cuda_build(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """An ONNX Runtime with the CUDA provider, where every allocation on a device fails with `message`."""

    def refuse(*_: object) -> None:
        raise RuntimeError(message)

    names = [ENTRIES["cuda"].ort_name, ENTRIES["cpu"].ort_name]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", refuse)


@pytest.mark.parametrize("provider", ["migraphx", "cann"])
def test_a_provider_that_the_build_lacks(provider: Provider) -> None:
    with pytest.raises(BackendError) as caught:
        Device(provider)
    said = str(caught.value)
    assert f"expected a build with {ENTRIES[provider].ort_name}, got" in said and "CPUExecutionProvider" in said
    assert said.endswith(f"Install one: {ENTRIES[provider].install}.") and "\n" not in said


@pytest.mark.parametrize(
    ("message", "got", "fix"),
    [
        (NO_LIBRARIES, "CUDA Provider not available, can't get interface for it", "onnxruntime-gpu[cuda,cudnn]"),
        (NO_DRIVER, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", "nvidia-smi"),
    ],
)
def test_what_is_missing_for_cuda(monkeypatch: pytest.MonkeyPatch, message: str, got: str, fix: str) -> None:
    pretend_cuda_build(monkeypatch, message)
    with pytest.raises(BackendError) as caught:
        Device("cuda")
    said = str(caught.value)
    assert said.startswith(f"provider cuda: no usable device: got {got}. ") and fix in said and "\n" not in said
    assert problems()["cuda"] == said and problems()["cpu"] == ""


def test_too_little_memory_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Elsewhere()
    pretend_cuda_build(monkeypatch, NO_MEMORY)
    with pytest.raises(
        ResourceError, match=r"not enough memory on the device: got Failed to allocate memory for .* 256"
    ):
        device.copy(np.zeros(64, np.float32), 1)


def test_the_library_preloader_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        ort, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublasLt.so.13"), raising=False
    )
    pretend_cuda_build(monkeypatch, NO_LIBRARIES)
    with pytest.raises(BackendError):
        Device("cuda")
    assert capsys.readouterr().out == ""


def test_copies() -> None:
    device = Elsewhere()
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(device.copy(values.T, 1).numpy(), values.T)
    bits = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert device.copy(bits, onnx.TensorProto.BFLOAT16).data_type() == "tensor(bfloat16)"


def test_a_session_on_a_device_computes_the_same(tiny_engine: Path) -> None:
    """Ragged steps over ranges of slots: weights from files, cache in buffers of the device, both in place."""
    files = EngineFiles.open(tiny_engine)
    here, there = OnnxRuntimeSession(files, 1), OnnxRuntimeSession(files, 1, Elsewhere())
    caches = [LatentCache(one.cache_layout, 3, 12) for one in (here, there)]
    random, start = np.random.default_rng(5), np.zeros(3, np.int64)
    for first, last, length in [(0, 1, 4), (1, 3, 2), (0, 3, 1), (2, 3, 5), (0, 3, 1)]:
        slots = range(first, last)
        ids = random.integers(0, here.vocab_size, (len(slots), length))
        rows = np.arange(ids.size)
        ours, theirs = (
            session.step(ids, start[first:last].copy(), cache, slots, rows)
            for session, cache in zip((here, there), caches, strict=True)
        )
        np.testing.assert_allclose(theirs, ours, atol=2e-5)
        start[first:last] += length
    assert not any(view.any() for _, view in caches[1].inputs(range(3))), "host memory was used"


def test_device_memory_of_a_cache_lives_as_long_as_the_cache(tiny_engine: Path) -> None:
    session = OnnxRuntimeSession(EngineFiles.open(tiny_engine), 1, Elsewhere())
    cache = LatentCache(session.cache_layout, 1, 4)
    session.step(np.array([[1]]), np.array([0]), cache, range(1), np.array([0]))
    assert len(session._trunk._device_caches) == 1
    del cache
    gc.collect()
    assert len(session._trunk._device_caches) == 0


def test_heavy_work_on_the_wrong_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime gives what a provider lacks to the CPU, and says nothing."""
    model = parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 24]> g (float[2,2] x) => (float[2,2] y) { y = MatMul (x, x) }"""
    )
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    device = Elsewhere()
    device.provider, device.entry = "cuda", ENTRIES["cuda"]
    with pytest.raises(BackendError, match=r"engine e: ONNX Runtime .* has no cuda kernel for MatMul\. Use"):
        device.check_placement(session, "engine e")
    monkeypatch.setattr(onnxruntime_device, "HEAVY", frozenset({"Softmax"}))
    device.check_placement(session, "engine e")


def test_the_library_warns_where_it_falls_back(tiny_engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cann.engine"
    shutil.copytree(tiny_engine, copy)
    text = (copy / "engine.json").read_text()
    (copy / "engine.json").write_text(text.replace('"providers": ["cpu"]', '"providers": ["cann", "cpu"]'))
    with pytest.warns(UserWarning, match="was built for cann and runs on cpu, slower: provider cann: ONNX Runtime"):
        Engine.load(copy, threads=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Engine.load(copy, threads=1, provider="cpu").generate([1], 1).token_ids
    with pytest.raises(BackendError, match=r"provider cann: ONNX Runtime .* expected a build with CANN"):
        Engine.load(copy, threads=1, provider="cann")
    outcome = run_here("run", copy, "--prompt-ids", "1", "--max-new-tokens", "1")
    assert outcome.code == 0 and outcome.out
    assert outcome.err_lines[0].startswith(f"dsv3export: engine {copy} was built for cann and runs on cpu, slower: ")
    assert len(outcome.err_lines) == 1
