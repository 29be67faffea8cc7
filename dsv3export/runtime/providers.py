"""Where an engine runs: ONNX Runtime's execution providers, and which of them an engine gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from dsv3export.engine.manifest import PROVIDERS, Provider
from dsv3export.errors import BackendError, RequestError

if TYPE_CHECKING:
    from dsv3export.engine.manifest import BackendRecord

Opened = TypeVar("Opened")
# "auto": what the engine was built for, or another that has kernels for it where that one is missing.
Choice = Provider | Literal["auto"]
CHOICES: tuple[Choice, ...] = ("auto", *PROVIDERS)


@dataclass(frozen=True)
class ProviderEntry:
    """What is known of a provider beforehand.

    Attributes:
        ort_name: ONNX Runtime's name for it.
        install: How to get an ONNX Runtime that has it.
        memory: ONNX Runtime's name for the kind of device whose memory it works in.
        options: Its session options.
    """

    ort_name: str
    install: str
    memory: str
    options: Mapping[str, str]


ENTRIES: Mapping[Provider, ProviderEntry] = {
    "cpu": ProviderEntry("CPUExecutionProvider", "pip install 'dsv3export[cpu]'", "cpu", {}),
    "cuda": ProviderEntry(
        "CUDAExecutionProvider",
        "pip uninstall onnxruntime && pip install 'dsv3export[gpu]'",
        "cuda",
        {
            "device_id": "0",  # the first that CUDA_VISIBLE_DEVICES leaves
            "use_tf32": "0",  # else float32 products have 10 bits
            "arena_extend_strategy": "kSameAsRequested",  # else the arena doubles, past what the weights need
        },
    ),
    "migraphx": ProviderEntry("MIGraphXExecutionProvider", "pip install onnxruntime-migraphx", "cuda", {}),
    "cann": ProviderEntry("CANNExecutionProvider", "pip install onnxruntime-cann", "cann", {}),
}


def check_choice(provider: str) -> None:
    """Raises RequestError for a name that is no provider and not "auto"."""
    if provider not in CHOICES:
        raise RequestError("provider", expected=f"one of {', '.join(CHOICES)}", got=repr(provider))


def open_provider(
    record: BackendRecord, where: str, asked: Choice, open_one: Callable[[Provider], Opened]
) -> tuple[Opened, str]:
    """Open the provider that an engine is to run on.

    Args:
        record: What the engine was built for.
        where: The engine, for messages.
        asked: A provider, which is then taken or refused; or "auto".
        open_one: Opens one, raising BackendError where that is impossible here.

    Returns:
        What `open_one` made, and one line about the provider that was given up on, empty where none was.

    Raises:
        BackendError: The engine does not run on what was asked for, or this machine has nothing that it runs on.
    """
    if asked != "auto":
        if asked not in record.providers:
            raise BackendError(
                f"{where}: provider", expected=" or ".join(record.providers), got=asked,
                fix=f"Rebuild it with --provider {asked}, or leave the provider to auto.",
            )  # fmt: skip
        return open_one(asked), ""
    preferred, *others = record.providers
    try:
        return open_one(preferred), ""
    except BackendError as unusable:
        for other in others:
            opened = open_one(other)
            return opened, f"{where} was built for {preferred} and runs on {other}, slower: {unusable}"
        raise
