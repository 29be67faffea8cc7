"""TensorRT's Python modules, or one line that says how to get them. The only place that imports them.

Nothing is imported before it is asked for: full TensorRT has gigabytes of libraries.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

from dsv3export.errors import BackendError

FlavourName = Literal["tensorrt-rtx", "tensorrt"]
FLAVOURS: tuple[FlavourName, ...] = get_args(FlavourName)


@dataclass(frozen=True)
class TensorRTPackage:
    """How a flavour is found.

    Attributes:
        modules: Its modules, the first that is there is taken: NVIDIA's package, or the bindings that it wraps.
        extra: Of this distribution, brings it.
    """

    modules: tuple[str, ...]
    extra: str


PACKAGES: dict[FlavourName, TensorRTPackage] = {
    "tensorrt-rtx": TensorRTPackage(("tensorrt_rtx", "tensorrt_rtx_bindings"), "rtx"),
    "tensorrt": TensorRTPackage(("tensorrt", "tensorrt_bindings"), "tensorrt"),
}


def load_tensorrt(flavour: FlavourName) -> ModuleType:
    """The flavour's Python module.

    Raises BackendError where it is not installed, or is and does not load, e.g. for want of a shared library.
    """
    package, problem = PACKAGES[flavour], "none"
    installed = next((name for name in package.modules if find_spec(name) is not None), None)
    if installed is not None:
        try:
            return importlib.import_module(installed)
        except (ImportError, OSError) as error:  # OSError: a shared library, loaded by hand
            problem = f"{installed}, which does not load: {error}"
    raise BackendError(
        f"backend {flavour}",
        expected=f"the Python package {package.modules[0]}",
        got=problem,
        fix=f"Install it: pip install 'dsv3export[{package.extra}]'.",
    )


@contextmanager
def without_collector() -> Iterator[None]:
    """For calls into TensorRT with a logger that is written in Python; also a decorator.

    TensorRT logs with locks held. A logger in Python may start the garbage collector; were that to destroy one of
    TensorRT's objects, it would wait for the same locks forever.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
