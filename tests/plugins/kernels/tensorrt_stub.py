"""Lets the real bindings of TensorRT import without its libraries: shared libraries with the symbols that they link."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

# What tensorrt.so of 11.4 takes from each library; none of it is called.
_LIBRARIES = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
    "libnvonnxparser.so.11": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}


def stub_environment(folder: Path) -> dict[str, str]:
    """The environment of a process that is to import ``tensorrt_bindings``; skips where that cannot be had."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the libraries that TensorRT's bindings link")
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("the package tensorrt-cu13-bindings is not installed")
    for library, symbols in _LIBRARIES.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols), encoding="ascii")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / library, source], check=True)
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(paths)}
