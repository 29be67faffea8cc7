"""What is said, in one line, where an engine cannot run: each reason once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.program import PROGRAM, Kind, Port, Program
from dsv3export.errors import BackendError, EngineError, ResourceError, UserError
from dsv3export.runtime.cuda_driver import DeviceLostError
from dsv3export.runtime.generation import prompt_logits
from dsv3export.runtime.tensorrt.session import TensorRTSession
from dsv3export.runtime.tensorrt_module import PACKAGES, TensorRTPackage
from tests.support.command_line import run_here
from tests.support.emulated.driver import EmulatedDriver
from tests.support.emulated.engines import Emulation, RecordedEngine, emulate


def altered(engine: RecordedEngine, change: Callable[[Program], Program], monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's program is read as `change` makes it."""
    program = change(Program.from_json(engine.files().graph(PROGRAM)))
    monkeypatch.setattr(Program, "from_json", lambda data: program)


def with_kind(name: str, **changes: Any) -> Callable[[Program], Program]:
    return lambda program: replace(program, kinds={**program.kinds, name: replace(program.kinds[name], **changes)})


def one_line(error: UserError) -> str:
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda program: replace(program, version="0.1"),
            "tensorrt_rtx: expected version 0.1, which built it, got 1.",
        ),
        (
            lambda program: replace(program, devices=("sm75", "sm86")),
            "device: expected sm75 or sm86, got sm89 (Emulated GPU). Rebuild it with --device sm89.",
        ),
        (
            lambda program: replace(program, inputs=tuple(name for name in program.inputs if name != "start")),
            "program: expected a value 'start', got none. Rebuild",
        ),
        (
            lambda program: replace(program, limits=replace(program.limits, capacity=64)),
            "program: expected caches of one shape, with 64 rows a slot, got F32 [1, 128, 160]",
        ),
        (
            with_kind("moe_layer", aliases={}),
            "program: expected a call that updates latent_cache.",
        ),
        (
            lambda program: with_kind("head", outputs=tuple(half(port) for port in program.kinds["head"].outputs))(
                program
            ),
            "program: expected float32 logits of a fixed width, got F16",
        ),
        (
            lambda program: with_kind("embed", outputs=(*program.kinds["embed"].outputs[1:],))(program),
            "embed.decode: tensors: expected those of the program, got",
        ),
    ],
)
def test_engines_of_another_kind(
    recorded: RecordedEngine, change: Callable[[Program], Program], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered(recorded, change, monkeypatch)
    with pytest.raises((BackendError, EngineError)) as caught:
        emulate(recorded)
    assert message in one_line(caught.value)


def half(port: Port) -> Port:
    return replace(port, dtype="F16") if port.name == "logits" else port


def test_tensors_of_another_type_than_the_program_says(
    recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(program: Program) -> Program:
        kind: Kind = program.kinds["embed"]
        inputs = tuple(replace(port, dtype="I32") if port.name == "start" else port for port in kind.inputs)
        return with_kind("embed", inputs=inputs)(program)

    altered(recorded, change, monkeypatch)
    with pytest.raises(EngineError, match=r"tensor 'start': expected INT32 \[-1\], got INT64 \[-1\]"):
        emulate(recorded)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("VERSION_MISMATCH", "got VERSION_MISMATCH. Rebuild the engine with the TensorRT-RTX that is installed here."),
        ("UNSUPPORTED_CC", "got UNSUPPORTED_CC. TensorRT-RTX runs on RTX GPUs; rebuild with --backend tensorrt"),
        ("OLD_CUDA_DRIVER", "got OLD_CUDA_DRIVER. Update the NVIDIA driver."),
    ],
)
def test_tensorrt_rtx_says_that_an_engine_does_not_run_here(
    recorded: RecordedEngine, reason: str, message: str
) -> None:
    bits = int(recorded.recorder.EngineInvalidityDiagnostics.__members__[reason].value)
    with pytest.raises(BackendError) as caught:
        emulate(recorded, validity=(recorded.recorder.EngineValidity.INVALID, bits))
    assert message in one_line(caught.value)


def test_tensorrt_refuses_an_engine(recorded: RecordedEngine) -> None:
    with pytest.raises(BackendError, match=r"embed\.decode: TensorRT refuses it: got the plan is of another"):
        emulate(recorded, refuse="the plan is of another platform")


def test_the_package_is_missing(recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "tensorrt-rtx", TensorRTPackage(("no_such_module",), "rtx"))
    with pytest.raises(BackendError, match=r"pip install 'dsv3export\[rtx\]'"):
        TensorRTSession(recorded.files())


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")
def test_no_gpu(recorded: RecordedEngine) -> None:
    """What the real cuda-bindings say on a machine without a driver."""
    with pytest.raises(BackendError, match="no usable NVIDIA GPU: expected a driver and a device") as caught:
        TensorRTSession(recorded.files())
    assert one_line(caught.value)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")
def test_run_on_a_machine_without_a_gpu(recorded: RecordedEngine) -> None:
    outcome = run_here("run", str(recorded.path), "--prompt", "And it")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert outcome.err.startswith("dsv3export: error: no usable NVIDIA GPU")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("run", "ENGINE", "--prompt", "And it", "--provider", "cuda"),
            "provider cuda: expected an engine for onnx",
        ),
        pytest.param(
            ("diff", "examples/tiny-dsv3", "ENGINE", "--prompts", "PROMPTS"),
            "diff --replay computes on the CPU what TensorRT was told",
            marks=pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver"),
        ),
    ],
)
def test_what_cannot_be_done_here(
    arguments: tuple[str, ...], message: str, recorded: RecordedEngine, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("And it\n")
    names = {
        "ENGINE": recorded.path, "PROMPTS": tmp_path / "prompts.txt",
        "examples/tiny-dsv3": root / "examples" / "tiny-dsv3",
    }  # fmt: skip
    outcome = run_here(*(str(names.get(argument, argument)) for argument in arguments))
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (1 << 20, "Take a device with more memory: dsv3export plan says which."),
        (10 << 20, " bits would fit: choose a narrower precision, and see dsv3export plan."),
    ],
)
def test_too_little_memory_is_said_before_weights_are_loaded(
    recorded: RecordedEngine, memory: int, message: str
) -> None:
    driver = EmulatedDriver(memory=memory)
    with pytest.raises(ResourceError) as caught:
        emulate(recorded, driver)
    assert "on Emulated GPU: expected 3" in one_line(caught.value) and "of free memory: weights " in str(caught.value)
    assert message in str(caught.value)
    assert driver.uploaded == []


def test_room_for_a_shorter_sequence_only(recorded: RecordedEngine) -> None:
    roomy = emulate(recorded)
    needed = roomy.driver.used + roomy.session.cache_layout.bytes_per_token * 100
    with pytest.raises(ResourceError, match=r"A sequence of 100 tokens would fit: rebuild it with --max-length 100\."):
        emulate(recorded, EmulatedDriver(memory=needed))


def test_other_programs_hold_the_memory(recorded: RecordedEngine) -> None:
    driver = EmulatedDriver(memory=64 << 20)
    driver.cuCtxSetCurrent("context")
    driver.cuMemAlloc(60 << 20)
    with pytest.raises(ResourceError, match="Other programs use the rest of it"):
        emulate(recorded, driver)


def test_a_lost_device(emulation: Emulation) -> None:
    emulation.driver.failures["cuStreamSynchronize"] = EmulatedDriver.CUresult.CUDA_ERROR_LAUNCH_FAILED
    with pytest.raises(DeviceLostError, match="the GPU was lost: got CUDA_ERROR_LAUNCH_FAILED"):
        prompt_logits(emulation.session, [1, 2, 3])


def test_a_step_that_tensorrt_refuses(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = emulation.trt.contexts[0].engine
    monkeypatch.setattr(type(emulation.trt.contexts[0]), "execute_async_v3", lambda self, _: self._refuse("no kernel"))
    with pytest.raises(BackendError, match=r"TensorRT failed in embed\.prefill: execution: got no kernel"):
        prompt_logits(emulation.session, [1, 2, 3])
    assert engine.log.errors == []
