"""Finding TensorRT's Python modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from dsv3export.errors import BackendError
from dsv3export.runtime.tensorrt_module import FLAVOURS, PACKAGES, FlavourName, TensorRTPackage, load_tensorrt


def test_rtx_is_here() -> None:
    trt = load_tensorrt("tensorrt-rtx")
    assert trt.__name__ in PACKAGES["tensorrt-rtx"].modules and hasattr(trt, "Builder")


def test_the_first_module_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "tensorrt", TensorRTPackage(("no_such_module", "json", "csv"), "tensorrt"))
    assert load_tensorrt("tensorrt") is importlib.import_module("json")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_missing(flavour: FlavourName, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = PACKAGES[flavour].extra
    monkeypatch.setitem(PACKAGES, flavour, TensorRTPackage(("no_such_module", "nor_this"), extra))
    with pytest.raises(BackendError) as caught:
        load_tensorrt(flavour)
    assert str(caught.value) == (
        f"backend {flavour}: expected the Python package no_such_module, got none. "
        f"Install it: pip install 'dsv3export[{extra}]'."
    )


@pytest.mark.parametrize("error", ["OSError('libnvinfer.so.11: no')", "ImportError('libnvinfer.so.11: no')"])
def test_a_library_that_does_not_load(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trt_without_library.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trt_without_library", raising=False)
    monkeypatch.setitem(PACKAGES, "tensorrt", TensorRTPackage(("trt_without_library",), "tensorrt"))
    with pytest.raises(BackendError, match=r"got trt_without_library, which does not load: libnvinfer\.so\.11: no"):
        load_tensorrt("tensorrt")
