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
CPU_KERNELS = ("native", "onnxruntime")

COMPILER_PACKAGES = ("torch", "onnx", "onnx_ir")

# What each backend needs to run and to build.
RUN_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "tokenizers"),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "cuda.bindings", "tokenizers"),
    "tensorrt": ("tensorrt", "cuda.bindings", "tokenizers"),
}
# A build for ONNX Runtime needs no backend, only the compiler; TensorRT builds its engines itself.
BUILD_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": COMPILER_PACKAGES,
    "tensorrt-rtx": (*COMPILER_PACKAGES, "tensorrt_rtx_bindings"),
    "tensorrt": (*COMPILER_PACKAGES, "tensorrt"),
}
# What runs, or even builds, where there is an NVIDIA GPU only.
NEED_A_GPU: Mapping[str, tuple[str, ...]] = {"onnxruntime": (), "tensorrt-rtx": ("run",), "tensorrt": ("build", "run")}


@dataclass(frozen=True)
class Capability:
    """One row of doctor's table. `why_not` is empty where both `build` and `run` hold."""

    backend: str
    precision: str
    build: bool
    run: bool
    why_not: str


def capabilities(packages: Mapping[str, PackageState], gpu: bool) -> tuple[Capability, ...]:
    """Every backend times every precision.

    Args:
        packages: Module name -> state.
        gpu: Whether there is an NVIDIA GPU.
    """
    return tuple(_judge(backend, precision, packages, gpu) for backend in BACKENDS for precision in PRECISIONS)


def _judge(backend: str, precision: str, packages: Mapping[str, PackageState], gpu: bool) -> Capability:
    lacks = {"build": _unusable(BUILD_PACKAGES[backend], packages), "run": _unusable(RUN_PACKAGES[backend], packages)}
    for verb in NEED_A_GPU[backend]:
        lacks[verb] += [] if gpu else ["an NVIDIA GPU"]
    reasons = [f"{verb} needs {', '.join(lacking)}" for verb, lacking in lacks.items() if lacking]
    return Capability(backend, precision, not lacks["build"], not lacks["run"], "; ".join(reasons))


def _unusable(modules: tuple[str, ...], packages: Mapping[str, PackageState]) -> list[str]:
    return [module for module in modules if not packages[module].usable]
