"""Triton's compiler, for a device that need not be here: a `Build` to PTX, with what the machine code of it takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3export.errors import BackendError
from dsv3export.plugins.kernels.plugin import Build
from dsv3export.plugins.kernels.ptx import entry_with, global_loads, matrix_instructions
from dsv3export.plugins.kernels.sass import disassembled, step_instructions

if TYPE_CHECKING:
    from collections.abc import Mapping

TARGETS = (80, 89, 90, 100, 120)
"""The compute capabilities that kernels are compiled for: Ampere, Ada, Hopper, Blackwell in data centres and in RTX."""
_WARP = 32
# Triton's newest would need the driver of this month; 8.7 is the first that knows all targets (CUDA 12.8).
PTX_VERSION = 87


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target.

    Args:
        name: Of the entry in the PTX.
        ptx: Its parameters are the build's arguments and nothing else.
        threads: Of a block.
        shared: Bytes of dynamic shared memory.
        registers: Of a thread, as the assembler of this Triton allots them.
        spilled: Bytes of a thread's stack, where registers did not suffice.
        matrix: How many instructions of each kind multiply matrices.
        wide_loads, narrow_loads: Instructions that load 16 bytes or more from global memory, and less.
        step: Instructions of a warp in a step of its loop around products of matrices; 0 where it has none.
    """

    name: str
    ptx: str
    threads: int
    shared: int
    registers: int
    spilled: int
    matrix: Mapping[str, int]
    wide_loads: int = 0
    narrow_loads: int = 0
    step: int = 0


def load_triton() -> Any:
    """The module `triton`.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return import_module("triton")
    except ImportError as error:
        raise BackendError(
            "the plugins' kernels",
            expected="the package triton",
            got=str(error),
            fix="pip install 'dsv3export[kernels]'",
        ) from error


def triton_function(build: Build) -> Any:
    """The Triton function of a build."""
    load_triton()
    module, _, name = build.kernel.partition(":")
    return getattr(import_module(module), name)


@contextmanager
def compiling() -> Iterator[None]:
    """Triton's settings while any thread compiles; not to be entered twice at a time."""
    knobs = load_triton().knobs
    with knobs.compilation.scope(), knobs.cache.scope(), tempfile.TemporaryDirectory() as directory:
        # Line numbers would carry this machine's paths into every engine. What is compiled is kept by `cache`.
        knobs.compilation.disable_line_info = True
        knobs.cache.dir = directory
        yield


def compile_build(build: Build, target: int) -> Compiled:
    """Compiles a build for a compute capability, e.g. 90, inside `compiling`; takes 0.1 to 2 seconds, needs no GPU.

    Raises:
        InternalError: The kernel needs scratch memory.
    """
    made = load_triton().compile(
        _source(triton_function(build), build),
        target=import_module("triton.backends.compiler").GPUTarget("cuda", target, _WARP),
        options={
            "num_warps": build.warps,
            "num_stages": build.stages,
            "ptx_version": PTX_VERSION,
            "enable_fp_fusion": True,
        },
    )
    registers, spilled = _resources(made.asm["cubin"])
    step = step_instructions(disassembled(made.asm["cubin"], _tool("nvdisasm")))
    ptx = entry_with(made.asm["ptx"], len(build.arguments))
    shared = made.metadata.shared
    return Compiled(
        made.metadata.name,
        ptx,
        build.warps * _WARP,
        shared,
        registers,
        spilled,
        matrix_instructions(ptx),
        *global_loads(ptx),
        step,
    )


def _source(function: Any, build: Build) -> Any:
    passed, constants = dict(build.arguments), dict(build.constants)
    names: list[str] = function.arg_names
    if set(names) != passed.keys() | constants.keys() or [name for name in names if name in passed] != list(passed):
        raise ValueError(f"{build.kernel} takes {names}, the build has {list(passed)} and {list(constants)}")
    # TensorRT's tensors are aligned far beyond the 16 bytes that the widest loads need.
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if passed.get(name, "")[:1] == "*"
    }
    return import_module("triton.compiler").ASTSource(
        function,
        {name: passed.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        aligned,
    )


def _tool(name: str) -> Path:
    """One of the tools that come with Triton."""
    return Path(load_triton().__file__).parent / "backends" / "nvidia" / "bin" / name


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, as the tool that comes with Triton reads them from machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_tool("cuobjdump")), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise ValueError(f"cuobjdump said nothing of registers: {said!r}")
    return int(found[1]), int(found[2])
