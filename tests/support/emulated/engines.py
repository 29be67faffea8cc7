"""TensorRT-RTX engines that were recorded while they were built, and sessions that replay them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.backend import TensorRTOptions
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.lower.tensorrt import backend
from dsv3export.graphs.lower.tensorrt.recorder import Recorder
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device
from dsv3export.runtime.tensorrt.kernels import KernelCache
from dsv3export.runtime.tensorrt.session import TensorRTSession
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.tensorrt import EmulatedTensorRT

LIMITS = TensorRTOptions(max_slots=4, max_length=128, prefill_chunk=48, max_draft=1)


@dataclass(frozen=True)
class RecordedEngine:
    """An engine directory, and the recorder that knows its networks."""

    path: Path
    recorder: Recorder

    def files(self) -> EngineFiles:
        return EngineFiles.open(self.path)


@dataclass(frozen=True)
class Emulation:
    """A session and what is behind it."""

    session: TensorRTSession
    driver: EmulatedDriver
    trt: EmulatedTensorRT


def recorded_engine(checkpoint: Path, out: Path, tensorrt: TensorRTOptions = LIMITS, **options: Any) -> RecordedEngine:
    """Builds an engine with the real TensorRT-RTX and keeps what that was told."""
    recorder = Recorder(load_tensorrt("tensorrt-rtx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "load_tensorrt", lambda flavour: recorder)
        build_engine(checkpoint, out, backend="tensorrt-rtx", tensorrt=tensorrt, **options)
    return RecordedEngine(out, recorder)


def emulate(
    engine: RecordedEngine,
    driver: EmulatedDriver | None = None,
    kernels: Path | None = None,
    flavour: str = "tensorrt-rtx",
    drafts: bool = False,
    **trt: Any,
) -> Emulation:
    """A session on an emulated device.

    Args:
        flavour: Whose runtime is emulated; what the engine's program says has to be the same.
        kernels: The file of compiled kernels.
        drafts: Whether the session is told that drafts will be wanted.
        trt: Attributes of the emulated module, set before anything is loaded.
    """
    driver = driver or EmulatedDriver()
    module = EmulatedTensorRT(engine.recorder, driver, flavour)
    for name, value in trt.items():
        setattr(module, name, value)
    device, kept = Device(driver=Driver(driver)), KernelCache(kernels)
    session = TensorRTSession(engine.files(), device, module, kept, drafts=drafts)
    return Emulation(session, driver, module)
