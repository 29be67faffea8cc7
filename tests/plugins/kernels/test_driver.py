"""Launches through CUDA's driver: what is passed, on a driver that writes it down; and on a GPU where there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsv3export.errors import BackendError
from dsv3export.plugins.kernels import cache, driver
from dsv3export.plugins.kernels.catalogue import CHECKS
from dsv3export.plugins.kernels.checks import run_checks
from dsv3export.plugins.kernels.compiler import Compiled
from dsv3export.plugins.kernels.driver import Device
from dsv3export.plugins.kernels.plugin import Build, Launch

KERNEL = Compiled("double", ".visible .entry double()", 128, 60_000, 32, 0, {})
BUILD = Build("nowhere:double", (("x_ptr", "*fp32"), ("rows", "i32"), ("y_ptr", "*fp32")), ())


class Result(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_PTX = 218


class Driver:
    """Stands for ``cuda.bindings.driver``: host memory for a device's, and a launch that doubles its input."""

    CUresult = Result
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.memory: dict[int, Any] = {}
        self.refuses = ""

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def called(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name == self.refuses:
                return (Result.CUDA_ERROR_INVALID_PTX,)
            acts = getattr(type(self), f"_{name}", None)
            return (Result.CUDA_SUCCESS, f"<{name}>" if acts is None else acts(self, *arguments))

        return called

    def _cuDeviceGetAttribute(self, kind: str, _device: Any) -> int:  # noqa: N802
        return {"major": 9, "minor": 0}[kind]

    def _cuMemAlloc(self, size: int) -> int:  # noqa: N802
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def _cuMemcpyHtoD(self, place: int, source: int, size: int) -> None:  # noqa: N802
        ctypes.memmove(place, source, size)

    def _cuMemcpyDtoH(self, target: int, place: int, size: int) -> None:  # noqa: N802
        ctypes.memmove(target, place, size)

    def _cuMemFree(self, place: int) -> None:  # noqa: N802
        del self.memory[place]

    def _cuLaunchKernel(self, *arguments: Any) -> None:  # noqa: N802
        (x, rows, y), _ = arguments[9]
        source, target = ((ctypes.c_float * rows).from_address(place) for place in (x, y))
        for place, number in enumerate(source):
            target[place] = 2 * number

    def arguments_of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def test_a_launch_passes_pointers_integers_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Driver()
    device = Device(driver=fake)
    assert device.capability == 90
    monkeypatch.setattr(driver, "compiled", lambda build, target: KERNEL)
    x, y = torch.arange(5.0), torch.full((5,), float("nan"))
    device.run(Launch(BUILD, (3, 2, 1), (5,)), [x], [y])
    assert y.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    ((_, *sizes, stream, (values, types), extra),) = fake.arguments_of("cuLaunchKernel")
    assert (sizes, stream, extra) == ([3, 2, 1, 128, 1, 1, 60_000], 0, 0)
    assert types == (ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
    assert values[1] == 5
    assert values[0] != values[2]
    assert fake.memory == {}
    assert fake.arguments_of("cuFuncSetAttribute") == [("<cuModuleGetFunction>", "shared", 60_000)]


def test_an_output_that_is_an_input_has_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Driver()
    monkeypatch.setattr(driver, "compiled", lambda build, target: KERNEL)
    x = torch.arange(4.0)
    device = Device(driver=fake)
    for _ in range(2):
        device.run(Launch(BUILD, (1, 1, 1), (4,)), [x], [x])
    assert x.tolist() == [0.0, 4.0, 8.0, 12.0]
    assert len(fake.arguments_of("cuMemAlloc")) == 2
    assert len(fake.arguments_of("cuModuleLoadData")) == 1


def test_what_the_driver_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Driver()
    monkeypatch.setattr(driver, "compiled", lambda build, target: KERNEL)
    device = Device(driver=fake)
    fake.refuses = "cuModuleLoadData"
    with pytest.raises(BackendError, match=r"expected cuModuleLoadData to succeed, got .*INVALID_PTX"):
        device.run(Launch(BUILD, (1, 1, 1), (4,)), [torch.ones(4)], [torch.ones(4)])
    assert fake.memory == {}


def test_the_kernels_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly what TensorRT would launch, against the ops' definitions."""
    pytest.importorskip("triton")
    try:
        device = Device()
    except BackendError as error:
        pytest.skip(f"no GPU: {error}")
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path))
    outcomes = list(run_checks(CHECKS, device.run, device.capability, every_tile=True))
    assert [outcome for outcome in outcomes if not outcome.passed] == []
