"""Compiles the native CPU kernels (plugins/cpu); all else about the package is in pyproject.toml.

`python setup.py build_ext --inplace` makes the library again in a source tree, compiling only what has changed. Where
there is no compiler, or it fails, the package is installed without: it then runs on ONNX Runtime's own kernels.

Environment: CXX, the compiler. WERROR=1, warnings are errors. SANITIZE=1, address and undefined-behaviour sanitizers.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("dsv3export", "plugins", "cpu")  # through the link: an sdist holds the files there only
LIBRARY = "dsv3export.runtime._cpu_kernels"
# A second dot, so that nothing takes it for a module of Python.
SUFFIX = ".ort.so"

# Rounding is part of a kernel's contract: no product is fused that the source does not fuse, and no sum reordered.
COMPILE = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra"]
LINK = ["-shared", "-pthread", "-static-libgcc", "-static-libstdc++", "-Wl,--exclude-libs,ALL"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"]
AMX = [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
# By the end of a file's name; such files are for x86-64 only. Compare plugins/cpu/isa.h.
BY_NAME = {"_avx2": AVX2, "_avx512": AVX512, "_amx": AMX}


class BuildKernels(build_ext):
    """Compiles each source with its own flags, if it or a header of its has changed, and links them."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_name(fullname.rpartition(".")[2] + SUFFIX))

    def build_extension(self, ext: Extension) -> None:
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        folder = Path(self.build_temp, "sanitized" if _asked("SANITIZE") else "optimised")
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_jobs()) as pool:
            objects = list(pool.map(lambda source: self._compile(compiler, Path(source), folder), ext.sources))
        library = Path(self.get_ext_fullpath(ext.name))
        if not self.force and library.exists() and all(_age(library) >= _age(one) for one in objects):
            return
        library.parent.mkdir(parents=True, exist_ok=True)
        new = library.with_suffix(".new")
        _run([*compiler, *LINK, *_extra(), *map(str, objects), "-o", str(new)])
        new.replace(library)  # a process that has loaded the old one keeps it

    def _compile(self, compiler: list[str], source: Path, folder: Path) -> Path:
        made, needed = folder / (source.stem + ".o"), folder / (source.stem + ".d")
        flags = next((flags for end, flags in BY_NAME.items() if source.stem.endswith(end)), [])
        command = [*compiler, *COMPILE, *WARNINGS, *_extra(), *flags]
        command += ["-MMD", "-MF", str(needed), "-c", str(source), "-o", str(made)]
        stamp = folder / (source.stem + ".command")
        current = stamp.exists() and stamp.read_text(encoding="utf-8") == shlex.join(command)
        if self.force or not current or not _newer_than_all(made, needed):
            _run(command)
            stamp.write_text(shlex.join(command), encoding="utf-8")
        return made


def _newer_than_all(made: Path, needed: Path) -> bool:
    """Whether `made` is newer than all files that a Makefile rule, as compilers write it, names."""
    if not made.exists() or not needed.exists():
        return False
    files = needed.read_text(encoding="utf-8").replace("\\\n", " ").partition(":")[2].split()
    return all(Path(file).exists() and _age(Path(file)) <= _age(made) for file in files)


def _age(file: Path) -> int:
    return file.stat().st_mtime_ns


def _extra() -> list[str]:
    return (SANITIZERS if _asked("SANITIZE") else []) + (["-Werror"] if _asked("WERROR") else [])


def _asked(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _jobs() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _run(command: list[str]) -> None:
    logging.getLogger(__name__).info("%s", shlex.join(command))
    subprocess.run(command, check=True)


def _sources() -> list[str]:
    x86 = platform.machine() in ("x86_64", "AMD64")
    files = sorted(SOURCES.glob("*.cpp"))
    return [str(file) for file in files if x86 or not file.stem.endswith(tuple(BY_NAME))]


setup(
    ext_modules=[Extension(LIBRARY, _sources(), optional=True)] if sys.platform == "linux" else [],
    cmdclass={"build_ext": BuildKernels},
)
