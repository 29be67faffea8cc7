"""Which backend builds and runs which precision, here: a table of what exists, against the packages that are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3export.cli.packages import PackageState

BACKENDS = ("onnxruntime", "tensorrt-rtx", "tensorrt")
PRECISIONS = ("fp32", "bf16", "fp8", "int8", "int4")
CACHE_FORMATS = ("fp32", "bf16", "f16", "fp8")
COMPUTE = ("fp32", "bf16", "f16")
PROVIDERS = ("cpu", "cuda", "migraphx", "cann")

COMPILER_PACKAGES = ("torch", "onnx", "onnx_ir")

# What each backend needs, for a precision that this version implements: to run and to build.
RUN_PACKAGES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("onnxruntime", precision): ("onnxruntime", "tokenizers") for precision in PRECISIONS
}
# A build for ONNX Runtime needs no backend, only the compiler; TensorRT builds its engines itself.
BUILD_PACKAGES: Mapping[tuple[str, str], tuple[str, ...]] = {
    **{("onnxruntime", precision): COMPILER_PACKAGES for precision in PRECISIONS},
    **{("tensorrt-rtx", precision): (*COMPILER_PACKAGES, "tensorrt_rtx_bindings") for precision in PRECISIONS},
    **{("tensorrt", precision): (*COMPILER_PACKAGES, "tensorrt") for precision in PRECISIONS},
}


@dataclass(frozen=True)
class Capability:
    """One row of doctor's table. `why_not` is empty where both `build` and `run` hold."""

    backend: str
    precision: str
    build: bool
    run: bool
    why_not: str


def capabilities(packages: Mapping[str, PackageState]) -> tuple[Capability, ...]:
    """Every backend times every precision, judged by `packages` (module name -> state)."""
    return tuple(_judge(backend, precision, packages) for backend in BACKENDS for precision in PRECISIONS)


def _judge(backend: str, precision: str, packages: Mapping[str, PackageState]) -> Capability:
    lacks_to_build = _unusable(BUILD_PACKAGES[backend, precision], packages)
    if (backend, precision) not in RUN_PACKAGES:
        lacking = f"build needs {', '.join(lacks_to_build)}; " if lacks_to_build else ""
        return Capability(backend, precision, not lacks_to_build, False, f"{lacking}run is not implemented")
    lacks_to_run = _unusable(RUN_PACKAGES[backend, precision], packages)
    reasons = [
        f"{verb} needs {', '.join(lacking)}"
        for verb, lacking in (("build", lacks_to_build), ("run", lacks_to_run))
        if lacking
    ]
    return Capability(backend, precision, not lacks_to_build, not lacks_to_run, "; ".join(reasons))


def _unusable(modules: tuple[str, ...], packages: Mapping[str, PackageState]) -> list[str]:
    return [module for module in modules if not packages[module].usable]
