"""Debug tensors of engines that real TensorRT-RTX builds, on an emulated device that replays them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.compare import diff_layers
from dsv3export.compare.layers import LayerDiff
from dsv3export.engine.program import MTP_PROGRAM, PROGRAM, Program
from dsv3export.errors import BackendError
from dsv3export.graphs.capture import ExecutorStages
from dsv3export.graphs.capture.tensorrt import TensorRTStages
from dsv3export.graphs.capture.tensorrt_device import DeviceMachine
from dsv3export.graphs.lower.tensorrt import kinds
from dsv3export.graphs.lower.tensorrt.flavour import RTX
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import RecordedEngine, recorded_engine
from tests.support.emulated.tensorrt import EmulatedContext, EmulatedTensorRT

PROMPTS = [[0, 5, 7, 100, 33, 21, 8], [0, 900]]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def recorded(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedEngine:
    pytest.importorskip("tensorrt_rtx_bindings")
    return recorded_engine(tiny_bf16, tmp_path_factory.mktemp("rtx") / "fp32.engine", precision="fp32")


@pytest.fixture
def driver() -> Iterator[EmulatedDriver]:
    made = EmulatedDriver()
    yield made
    gc.collect()
    assert made.faults == []
    assert made.used == 0


def diff(recorded: RecordedEngine, driver: EmulatedDriver, flavour: str = "tensorrt-rtx") -> LayerDiff:
    files, trt = recorded.files(), EmulatedTensorRT(recorded.recorder, driver, flavour)
    engine, machine = DeviceMachine.of(files, Device(driver=Driver(driver)), trt)
    checkpoint = Checkpoint.open(Path(files.manifest.checkpoint.path))
    executor = ExecutorStages(checkpoint, PROMPTS, files.manifest.recipe)
    return diff_layers(executor, TensorRTStages(engine, machine, PROMPTS), len(PROMPTS), TOLERANCE)


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_every_value_is_seen(
    flavour: str, recorded: RecordedEngine, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full TensorRT's runtime is emulated with networks of TensorRT-RTX: its own have plugins."""
    if flavour == "tensorrt":
        monkeypatch.setattr(kinds, "FLAVOURS", {"tensorrt": RTX})
        parsed = Program.from_json
        monkeypatch.setattr(Program, "from_json", lambda data: replace(parsed(data), flavour="tensorrt"))
    found = diff(recorded, driver, flavour)
    assert found.first_fault is None
    assert found.got.endswith(f"({'TensorRT' if flavour == 'tensorrt' else 'TensorRT-RTX'} on Emulated GPU, fp32)")
    names = {value.name for value in found.values}
    assert {
        "layers.0.mlp.swish",
        "layers.3.mlp.experts",
        "layers.3",
        "lm_head",
        "final_hidden",
        "layers.4.hnorm",
    } <= names
    assert (found.only_expected, found.only_got) == ((), ())
    assert len(found.routers) == 4 and len(found.caches) == 5
    assert found.drafts is not None
    # Both sides compute in float32, so a comparison of a value with itself would show: some bits must differ.
    assert 0 < max(value.injected.worst_row for value in found.values) < TOLERANCE / 10


def test_a_fault_of_the_engine_s_own_kernels_is_seen_in_what_it_hands_on(
    recorded: RecordedEngine, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy with debug tensors is right: only what TensorRT has fused in the engine's own is not."""
    run = EmulatedContext._run

    def wrong(self: EmulatedContext, addresses: Mapping[str, int], shapes: Any, on_host: Any) -> Any:
        shown = run(self, addresses, shapes, on_host)
        if not self._shown and "moe_layer" in str(self.engine.record.layers) and "hidden" in addresses:
            width = 4 * self.engine.tensors["hidden"].shape[-1]
            self._driver.device_bytes(addresses["hidden_out"], width)[:4] = 1
        return shown

    monkeypatch.setattr(EmulatedContext, "_run", wrong)
    fault = diff(recorded, driver).first_fault
    assert fault is not None
    assert (fault.name, fault.position, fault.index) == ("layers.1.add_2", 0, 0)  # the last value of the layer


def test_a_tensor_that_is_not_shown_is_missed(
    recorded: RecordedEngine, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    show: Callable[..., bool] = EmulatedContext._show

    def without_first(self: EmulatedContext, inner: Mapping[str, torch.Tensor], stream: int) -> bool:
        del self._shown[0]
        return show(self, inner, stream)

    monkeypatch.setattr(EmulatedContext, "_show", without_first)
    with pytest.raises(BackendError, match="has not shown the debug tensor"):
        diff(recorded, driver)


def test_engines_have_no_marks_of_their_own(recorded: RecordedEngine) -> None:
    """What `build` told TensorRT has none: the fast path is what it was."""
    files = recorded.files()
    engines = [name for name in files.manifest.graphs if name not in (PROGRAM, MTP_PROGRAM)]
    assert len(engines) >= 8
    for name in engines:
        events = recorded.recorder.record_of(files.graph(name)).events
        assert not [event for event in events if getattr(event, "method", "") == "mark_debug"]


def test_no_gpu_is_said_in_one_line(recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Driver(EmulatedDriver(devices=0))
    monkeypatch.setattr("dsv3export.graphs.capture.tensorrt_device.Device", lambda: Device(driver=none))
    with pytest.raises(BackendError) as caught:
        DeviceMachine.of(recorded.files())
    message = str(caught.value)
    assert all(text in message for text in ("TensorRT-RTX and its GPU", "no usable NVIDIA GPU", "diff --replay"))
