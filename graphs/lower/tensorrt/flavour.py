"""The two TensorRTs: what each can be told to do, and what is refused before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3export.runtime.tensorrt_module import FlavourName


@dataclass(frozen=True)
class Flavour:
    """One TensorRT.

    Attributes:
        name: As `--backend` names it.
        plugins: Whether its networks take plugins: TensorRT-RTX's Python interface has no `add_plugin`.
        rounds_activations: Whether it has a product of FP8 numbers on both sides with activations rounded 1x128.
        measures: Whether a build measures kernels on the device.
        compute_capabilities: What an engine can be built for without a device of that kind; empty where the engine is
            for the device that builds it.
    """

    name: FlavourName
    plugins: bool
    rounds_activations: bool
    measures: bool
    compute_capabilities: tuple[str, ...] = ()


# Not sm75, which has no bfloat16: embedding tables and routers are stored in it.
RTX = Flavour("tensorrt-rtx", False, False, False, ("sm80", "sm86", "sm89", "sm120", "sm121"))
FULL = Flavour("tensorrt", True, True, True)
FLAVOURS: Mapping[FlavourName, Flavour] = {flavour.name: flavour for flavour in (RTX, FULL)}
