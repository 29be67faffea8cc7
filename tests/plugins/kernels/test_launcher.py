"""Launches through CUDA's driver: what is passed, on the emulated driver; and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuda.bindings.driver as real
import pytest
import torch

from dsv3export.errors import BackendError
from dsv3export.plugins.kernels import cache, launcher
from dsv3export.plugins.kernels.catalogue import CHECKS
from dsv3export.plugins.kernels.checks import run_checks
from dsv3export.plugins.kernels.compiler import Compiled
from dsv3export.plugins.kernels.launcher import Launcher
from dsv3export.plugins.kernels.plugin import Build, Launch
from dsv3export.runtime.cuda_driver import Driver
from dsv3export.runtime.device import Device
from tests.support.emulated.driver import EmulatedDriver, Work

KERNEL = Compiled("double", ".visible .entry double()", 128, 60_000, 32, 0, {})
BUILD = Build("nowhere:double", (("x_ptr", "*fp32"), ("rows", "i32"), ("y_ptr", "*fp32")), ())


class KernelDriver(EmulatedDriver):
    """The emulated driver with one kernel, which doubles its input."""

    CUfunction_attribute = real.CUfunction_attribute

    def __init__(self) -> None:
        super().__init__(memory=1 << 20, compute_capability=(9, 0))
        self.loaded: list[bytes] = []
        self.shared: list[int] = []
        self.launches: list[tuple[Any, ...]] = []

    def cuModuleLoadData(self, image: bytes) -> str:  # noqa: N802
        self.loaded.append(image)
        return "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> str:  # noqa: N802
        assert module == "module"
        return name.decode()

    def cuFuncSetAttribute(self, function: str, kind: Any, value: int) -> None:  # noqa: N802
        assert kind == real.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.shared.append(value)

    def cuLaunchKernel(self, function: str, *arguments: Any) -> None:  # noqa: N802
        *sizes, stream, ((x, rows, y), types), extra = arguments
        self.launches.append((function, sizes, types, extra))
        source, target = self.device_bytes(x, 4 * rows), self.device_bytes(y, 4 * rows)

        def double() -> None:
            target.view("f4")[:] = 2 * source.view("f4")

        self.enqueue(self.queues[int(stream)], Work(double, (x, y)))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelDriver]:
    monkeypatch.setattr(launcher, "compiled", lambda build, target: KERNEL)
    made = KernelDriver()
    yield made
    gc.collect()
    assert (made.faults, made.used) == ([], 0)


def test_a_launch_passes_pointers_integers_pointers(driver: KernelDriver) -> None:
    runner = Launcher(Device(driver=Driver(driver)))
    assert runner.capability == 90
    x, y = torch.arange(5.0), torch.full((5,), float("nan"))
    runner.run(Launch(BUILD, (3, 2, 1), (5,)), [x], [y])
    assert y.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    types = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    assert driver.launches == [("double", [3, 2, 1, 128, 1, 1, 60_000], types, 0)]
    assert driver.loaded == [KERNEL.ptx.encode() + b"\0"]
    assert driver.shared == [60_000]


def test_an_output_that_is_an_input_has_one_place(driver: KernelDriver) -> None:
    x = torch.arange(4.0)
    runner = Launcher(Device(driver=Driver(driver)))
    for _ in range(2):
        runner.run(Launch(BUILD, (1, 1, 1), (4,)), [x], [x])
    assert x.tolist() == [0.0, 4.0, 8.0, 12.0]
    assert len(driver.uploaded) == 2
    assert len(driver.loaded) == 1


def test_what_the_driver_refuses_is_said(driver: KernelDriver) -> None:
    runner = Launcher(Device(driver=Driver(driver)))
    driver.failures["cuModuleLoadData"] = real.CUresult.CUDA_ERROR_INVALID_PTX
    with pytest.raises(BackendError, match="cuModuleLoadData failed: got CUDA_ERROR_INVALID_PTX"):
        runner.run(Launch(BUILD, (1, 1, 1), (4,)), [torch.ones(4)], [torch.ones(4)])


def test_the_kernels_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly what TensorRT would launch, against the ops' definitions."""
    pytest.importorskip("triton")
    try:
        runner = Launcher(Device())
    except BackendError as error:
        pytest.skip(f"no GPU: {error}")
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path))
    outcomes = list(run_checks(CHECKS, runner.run, runner.capability, every_tile=True))
    assert [outcome for outcome in outcomes if not outcome.passed] == []
