"""Which kernels an engine runs with on the CPU: native ones, or ONNX Runtime's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from dsv3export.engine.native_graphs import native_graphs, of_trunk
from dsv3export.errors import BackendError, RequestError
from dsv3export.runtime import cpu_kernels
from dsv3export.runtime.onnx_ops import ops_of_functions

if TYPE_CHECKING:
    from dsv3export.engine.manifest import Provider
    from dsv3export.engine.reader import EngineFiles

CpuKernels = Literal["native", "onnxruntime"]
# "auto": native ones where the engine has graphs for them and this machine the library.
KernelChoice = CpuKernels | Literal["auto"]
KERNEL_CHOICES: tuple[KernelChoice, ...] = ("auto", *get_args(CpuKernels))


def check_kernels(asked: str) -> None:
    """Raises RequestError for a name that is none of `KERNEL_CHOICES`."""
    if asked not in KERNEL_CHOICES:
        raise RequestError("cpu_kernels", expected=f"one of {', '.join(KERNEL_CHOICES)}", got=repr(asked))


def choose_kernels(
    files: EngineFiles, provider: Provider, asked: KernelChoice = "auto", invariant: bool = False
) -> CpuKernels:
    """The kernels that an engine runs with on a provider.

    Args:
        invariant: Whether a token's results must not depend on what is computed with it: native kernels promise that.

    Raises:
        BackendError: Native ones were asked for and cannot be had, or their library does not load.
        RequestError: They are needed, and others were asked for.
    """
    if asked == "onnxruntime":
        if invariant:
            raise RequestError("invariant", expected="native CPU kernels", got="onnxruntime")
        return "onnxruntime"
    why_not = _why_not_native(files, provider)
    if why_not and (asked == "native" or invariant):
        raise why_not
    return "onnxruntime" if why_not else "native"


def _why_not_native(files: EngineFiles, provider: Provider) -> BackendError | None:
    what = f"engine {files.path}: native CPU kernels"
    if provider != "cpu":
        return BackendError(what, expected="provider cpu", got=provider)
    names = native_graphs(files.manifest)
    if not names:
        fix = "Rebuild it with this dsv3export, or leave --cpu-kernels to auto."
        return BackendError(what, expected="graphs for them", got="none in engine.json", fix=fix)
    library = cpu_kernels.describe()
    if library is None:
        return BackendError("native CPU kernels", got="none: they were not compiled", fix=cpu_kernels.HOW_TO_GET)
    trunk = filter(of_trunk, names)  # whose layers have all ops that the MTP layer has
    wanted = {op for name in trunk for op in ops_of_functions(files.graph(name), cpu_kernels.DOMAIN)}
    if missing := sorted(wanted - set(library.ops)):
        fix = "Install the dsv3export that built the engine, or leave --cpu-kernels to auto."
        return BackendError(what, expected=f"a kernel {missing[0]}", got=f"{', '.join(library.ops)}", fix=fix)
    return None
