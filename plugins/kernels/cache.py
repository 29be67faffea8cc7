"""Compiled kernels, kept on disk under a key of all that decides their bytes, and made in parallel where missing."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from dsv3export.plugins.kernels.compiler import (
    PTX_VERSION,
    Compiled,
    compile_build,
    compiling,
    load_triton,
    triton_function,
)
from dsv3export.plugins.kernels.plugin import Build
from dsv3export.progress import NoProgress, Progress

DIRECTORY_VARIABLE = "DSV3EXPORT_KERNEL_CACHE"
_FORMAT = 3
_WORTH_PROCESSES = 8
_settings_lock = threading.Lock()


def cache_directory() -> Path:
    """The folder of the cache: ``$DSV3EXPORT_KERNEL_CACHE``, or one below the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get(DIRECTORY_VARIABLE)
    return Path(chosen) if chosen else user_cache_path("dsv3export") / "kernels"


def key_of(build: Build, target: int) -> str:
    """A digest of the kernel's source and of what it calls, the arguments and constants, target and versions."""
    facts = {
        "format": _FORMAT,
        "triton": load_triton().__version__,
        "ptx": PTX_VERSION,
        "source": triton_function(build).cache_key,
        "target": target,
        **asdict(build),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def compiled(build: Build, target: int) -> Compiled:
    """The kernel for a compute capability, from the cache or compiled now.

    Raises:
        BackendError: Triton is not installed.
    """
    return compile_all([(build, target)])[0]


def compile_all(
    wanted: Sequence[tuple[Build, int]], jobs: int | None = None, progress: Progress | None = None
) -> list[Compiled]:
    """Every (build, compute capability) as with `compiled`, in order, `jobs` at a time; default: one a core."""
    progress = progress or NoProgress()
    paths = [cache_directory() / f"{key_of(build, target)}.json" for build, target in wanted]
    results = {place: kept for place, path in enumerate(paths) if (kept := _read(path)) is not None}
    missing = [place for place in range(len(wanted)) if place not in results]
    if not missing:
        return [results[place] for place in range(len(wanted))]
    progress.start("compile", len(missing), "kernels")
    made = _compile([wanted[place] for place in missing], jobs or os.cpu_count() or 1)
    for place, kernel in zip(missing, made, strict=True):
        results[place] = kernel
        _write(paths[place], kernel)
        progress.advance(1)
    progress.finish()
    return [results[place] for place in range(len(wanted))]


def _compile(wanted: Sequence[tuple[Build, int]], jobs: int) -> Iterator[Compiled]:
    """In processes, since Triton's compiler runs one at a time in each; a few kernels are not worth starting them."""
    if jobs == 1 or len(wanted) < _WORTH_PROCESSES:
        with _settings_lock, compiling():
            yield from (compile_build(build, target) for build, target in wanted)
        return
    # Not forked: this process may have threads, and CUDA.
    with ProcessPoolExecutor(min(jobs, len(wanted)), get_context("spawn")) as pool:
        yield from pool.map(_compile_alone, wanted)


def _compile_alone(wanted: tuple[Build, int]) -> Compiled:
    with compiling():
        return compile_build(*wanted)


def _read(path: Path) -> Compiled | None:
    """What is kept, or None where nothing is or it is damaged."""
    try:
        return Compiled(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, kernel: Compiled) -> None:
    """Keeps a kernel; a cache that cannot be written costs time, nothing else."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(kernel)), encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
