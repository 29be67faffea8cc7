"""Compiles the native CPU kernels (plugins/cpu); all else about the package is in pyproject.toml.

`python setup.py build_ext --inplace` makes the library again in a source tree, compiling only what has changed. Where
there is no compiler, or it fails, the package is installed without: it then runs on ONNX Runtime's own kernels.

Environment: CXX, the compiler. WERROR=1, warnings are errors. SANITIZE=1, address and undefined-behaviour sanitizers.
REQUIRED=1, a failure is one of the whole installation.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("dsv3export", "plugins", "cpu")  # through the link: an sdist holds the files there only
LIBRARY = "dsv3export.runtime._cpu_kernels"
# A second dot, so that nothing takes it for a module of Python.
SUFFIX = ".ort.so"

# Rounding is part of a kernel's contract: no product is fused that the source does not fuse, and no sum reordered.
COMPILE = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-warning-option"]
LINK = ["-shared", "-pthread", "-Wl,--exclude-libs,ALL"]
# So that the library does not care which C++ runtime a process has loaded; not every compiler comes with these.
STATIC_RUNTIME = ["-static-libgcc", "-static-libstdc++"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
SANITIZERS += ["-DDSV3_SANITIZED"]  # our own allocators hand out blocks of the heap

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# The last two: GCC 12 takes the undefined operands inside its own intrinsics for ours.
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"]
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
AMX = [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
# By the end of a file's name, in ascending order; such files are for x86-64 only. Compare plugins/cpu/isa.h.
BY_NAME = {"_avx2": AVX2, "_avx512": AVX512, "_amx": AMX}


class BuildKernels(build_ext):
    """Compiles each source with its own flags, if it or a header of its has changed, and links them."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_name(fullname.rpartition(".")[2] + SUFFIX))

    def build_extension(self, ext: Extension) -> None:
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        folder = Path(self.build_temp, "sanitized" if _asked("SANITIZE") else "optimised")
        folder.mkdir(parents=True, exist_ok=True)
        # The linker keeps the first copy that it sees of an inline function. So plain files go first, then ascending:
        # what all share is then never the copy that some machine cannot run.
        sources = sorted(map(Path, ext.sources), key=lambda source: (_level(source), source.name))
        with ThreadPoolExecutor(_jobs()) as pool:
            objects = list(pool.map(lambda source: self._compile(compiler, source, folder), sources))
        self._link(compiler, objects, Path(self.get_ext_fullpath(ext.name)), folder)

    def _compile(self, compiler: list[str], source: Path, folder: Path) -> Path:
        made, needed = folder / (source.stem + ".o"), folder / (source.stem + ".d")
        flags = [*COMPILE, *WARNINGS, *_extra(), *([] if _level(source) < 0 else [*BY_NAME.values()][_level(source)])]
        command = [*compiler, *flags, "-MMD", "-MF", str(needed), "-c", str(source), "-o", str(made)]
        if self.force or not _repeats(command, made) or not _newer_than_all(made, _needed_files(needed)):
            self._run(command)
            _remember(command, made)
        return made

    def _link(self, compiler: list[str], objects: list[Path], library: Path, folder: Path) -> None:
        command = [*compiler, *LINK, *_extra(), *map(str, objects), "-o"]
        made = folder / library.name
        if self.force or not _repeats(command, made) or not _newer_than_all(made, objects):
            try:
                # sanitizers need the shared C++ runtime, where they catch exceptions
                self._run([*command, str(made), *([] if _asked("SANITIZE") else STATIC_RUNTIME)])
            except CompileError:
                self._run([*command, str(made)])
            _remember(command, made)
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)  # a process that has loaded the old one keeps it
        shutil.copy(made, library)  # new: what it is copied over may be younger than `made`

    def _run(self, command: list[str]) -> None:
        self.announce(shlex.join(command), logging.INFO)
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(str(error)) from error


class TagWheel(bdist_wheel):
    """The library is for a platform, not for a version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def _level(source: Path) -> int:
    """The place of the file's instruction set in BY_NAME; -1 for what every machine runs."""
    return next((level for level, end in enumerate(BY_NAME) if source.stem.endswith(end)), -1)


def _repeats(command: list[str], made: Path) -> bool:
    """Whether `made` was made by this very command."""
    note = made.with_suffix(".command")
    return note.exists() and note.read_text(encoding="utf-8") == shlex.join(command)


def _remember(command: list[str], made: Path) -> None:
    made.with_suffix(".command").write_text(shlex.join(command), encoding="utf-8")


def _needed_files(rule: Path) -> list[Path]:
    """The files that a Makefile rule, as compilers write it, names; a missing rule names itself."""
    if not rule.exists():
        return [rule]
    return [Path(file) for file in rule.read_text(encoding="utf-8").replace("\\\n", " ").partition(":")[2].split()]


def _newer_than_all(made: Path, files: list[Path]) -> bool:
    return made.exists() and all(file.exists() and file.stat().st_mtime <= made.stat().st_mtime for file in files)


def _extra() -> list[str]:
    return (SANITIZERS if _asked("SANITIZE") else []) + (["-Werror"] if _asked("WERROR") else [])


def _asked(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _jobs() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _sources() -> list[str]:
    x86 = platform.machine() in ("x86_64", "AMD64")
    return [str(file) for file in sorted(SOURCES.glob("*.cpp")) if x86 or _level(file) < 0]


setup(
    ext_modules=[Extension(LIBRARY, _sources(), optional=not _asked("REQUIRED"))] if sys.platform == "linux" else [],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": TagWheel},
)
