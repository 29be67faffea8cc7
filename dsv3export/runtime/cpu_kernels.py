"""The native CPU kernels: a library of custom ops for ONNX Runtime, where one was compiled at installation.

Its sources are in plugins/cpu; docs/design.md ("CPU kernels") has the layouts and the numerics.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3export.errors import BackendError

if TYPE_CHECKING:
    from dsv3export.runtime.onnxruntime_module import ort

DOMAIN = "dsv3.cpu"
DOMAIN_VERSION = 1
HOW_TO_GET = "Install a C++ compiler (g++ or clang++), then install dsv3export again from source."
# Read by each kernel when it is created.
_THREADS_ENTRY = "dsv3.cpu.threads"
_INVARIANT_ENTRY = "dsv3.cpu.invariant"
_FILE = Path(__file__).with_name("_cpu_kernels.ort.so")
_DESCRIPTION_BYTES = 4096


@dataclass(frozen=True)
class Description:
    """What a library is.

    Attributes:
        path: The library.
        isa: The instruction set that it uses: generic, avx2, avx512 or amx.
        machine_isa: The best that this machine has; DSV3EXPORT_CPU_ISA may have lowered `isa`.
        compiler: The compiler's name and version.
        ops: Names of the ops in the domain ``dsv3.cpu``.
        weight_bytes: Of packed weights, which the sessions of this process hold together.
    """

    path: Path
    isa: str
    machine_isa: str
    compiler: str
    ops: tuple[str, ...]
    weight_bytes: int


def library() -> Path | None:
    """The compiled library; None where there was no compiler."""
    return _FILE if sys.platform == "linux" and _FILE.is_file() else None


def describe() -> Description | None:
    """What the library says of itself; None where there is none.

    Raises:
        BackendError: It does not load, or DSV3EXPORT_CPU_ISA names no instruction set.
    """
    path = library()
    if path is None:
        return None
    text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
    try:
        fine = ctypes.CDLL(str(path)).dsv3_cpu_describe(text, ctypes.c_size_t(len(text)))
    except (OSError, AttributeError) as error:
        raise BackendError("native CPU kernels", got=str(error), fix=HOW_TO_GET) from None
    said = text.value.decode()
    if not fine:
        raise BackendError(said)
    data = json.loads(said)
    return Description(path=path, **{**data, "ops": tuple(data["ops"])})


def register(options: ort.SessionOptions, threads: int, invariant: bool = False) -> None:
    """Make the ops known to the session that `options` will make.

    Args:
        threads: The session's compute threads; kernels size their tasks by it.
        invariant: Attention has one form, whatever it costs, so that a token's results do not depend on how many tokens
            its step has.

    Raises:
        BackendError: There is no library, it does not load, or DSV3EXPORT_CPU_ISA names no instruction set.
    """
    description = describe()
    if description is None:
        raise BackendError("native CPU kernels", got="none: they were not compiled", fix=HOW_TO_GET)
    options.add_session_config_entry(_THREADS_ENTRY, str(threads))
    options.add_session_config_entry(_INVARIANT_ENTRY, str(int(invariant)))
    options.register_custom_ops_library(str(description.path))
