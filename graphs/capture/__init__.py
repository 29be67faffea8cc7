"""Models that run one stage at a time and show every value: a checkpoint's executor, and engines."""

from __future__ import annotations

from collections.abc import Sequence

from dsv3export.compare.stages import StagedModel
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.capture.causes import cause_chain
from dsv3export.graphs.capture.engine import EngineStages
from dsv3export.graphs.capture.executor import ExecutorStages
from dsv3export.runtime.kernel_choice import KernelChoice

__all__ = ["EngineStages", "ExecutorStages", "cause_chain", "engine_stages"]


def engine_stages(
    files: EngineFiles,
    prompts: Sequence[Sequence[int]],
    threads: int | None = None,
    replay: bool = False,
    chunk: int | None = None,
    cpu_kernels: KernelChoice = "auto",
) -> StagedModel:
    """An engine of any backend.

    Args:
        prompts: Token ids of each.
        threads: CPU threads of one for ONNX Runtime.
        replay: Compute one for TensorRT-RTX on the CPU, by replay.
        chunk: As `TensorRTStages`'s.
        cpu_kernels: Those of ONNX Runtime's sessions.

    Raises UserError: BackendError where the backend, its device or a package of it is missing.
    """
    if files.manifest.backend.name == "onnxruntime":
        return EngineStages(files, prompts, threads, cpu_kernels)
    from dsv3export.graphs.capture.tensorrt import TensorRTStages
    from dsv3export.graphs.capture.tensorrt_device import DeviceMachine
    from dsv3export.graphs.capture.tensorrt_replay import ReplayMachine

    engine, machine = ReplayMachine.of(files) if replay else DeviceMachine.of(files)
    return TensorRTStages(engine, machine, prompts, chunk)
