"""Opens one rank's part of an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dsv3export.engine.parallel import Parallel, rank_folder
from dsv3export.engine.program import PROGRAM
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.segments import SegmentProgram
from dsv3export.errors import BackendError, EngineError
from dsv3export.runtime.distributed.buffers import BufferPool
from dsv3export.runtime.distributed.commands import Kind
from dsv3export.runtime.distributed.stage import Stage
from dsv3export.runtime.distributed.worker import Worker
from dsv3export.runtime.onnxruntime_device import open_device
from dsv3export.runtime.threads import default_threads

if TYPE_CHECKING:
    from dsv3export.runtime.distributed.communicator import Communicator
    from dsv3export.runtime.kernel_choice import KernelChoice


def parallel_of(files: EngineFiles) -> Parallel:
    """How an engine is cut. Raises EngineError where it is one for a single process."""
    parallel = files.manifest.parallel
    if parallel is None:
        raise EngineError(
            f"engine {files.path}", expected="one for several ranks", got="one for a single process",
            fix="Build it with --pp, --tp or --ep, or run it without --nproc and torchrun.",
        )  # fmt: skip
    return parallel


def open_rank(engine: Path, rank: int, verify: Literal["auto", "full"] = "auto") -> EngineFiles:
    """A rank's folder of an engine, checked. Raises EngineError, also where it is another rank's."""
    files = EngineFiles.open(engine / rank_folder(rank), verify)
    if files.manifest.backend.name != "onnxruntime" or "cpu" not in files.manifest.backend.providers:
        got = f"{files.manifest.backend.name}, {' '.join(files.manifest.backend.providers)}"
        raise BackendError(
            f"engine {files.path}: several ranks", expected="onnxruntime on the cpu, so far", got=got,
            fix="Build it with --provider cpu.",
        )  # fmt: skip
    if parallel_of(files).rank != rank:
        raise EngineError(f"engine {files.path}", expected=f"rank {rank}", got=f"rank {parallel_of(files).rank}")
    return files


def load_worker(
    files: EngineFiles, communicator: Communicator, threads: int | None, kernels: KernelChoice = "auto"
) -> Worker:
    """The rank's segments, opened.

    Raises:
        BackendError: ONNX Runtime refuses a graph, or the kernels cannot be had.
        EngineError: The program, a graph or a weight is not what it should be.
    """
    layout, device, pool = parallel_of(files).layout, open_device(files, "cpu", kernels), BufferPool()
    program = SegmentProgram.from_json(files.graph(device.graph_name(PROGRAM)))
    count = threads or shared_threads()
    trunk = Stage(files, program.parts["trunk"], communicator, layout, pool, count, device)
    mtp = None
    if "mtp" in program.parts:
        first = files.config.num_hidden_layers
        mtp = Stage(files, program.parts["mtp"], communicator, layout, pool, count, device, first)
    return Worker(communicator, layout, trunk, mtp)


def shared_threads() -> int:
    """This rank's share of the cores: as many ranks of one machine as torchrun says use them."""
    return max(1, default_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def has_drafts(worker: Worker) -> bool:
    """Whether this rank has a part of the MTP layer."""
    return worker.cache_layout(Kind.DRAFT) is not None
