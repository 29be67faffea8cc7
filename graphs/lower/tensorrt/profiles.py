"""Optimisation profiles: for which sizes an engine is made, and for which of them it shall be fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dsv3export.engine.program import Limits, Phase, Port
from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.objects import IBuilder, IBuilderConfig


class Range(NamedTuple):
    """Of a size that is known at run time: the least, the commonest, the largest."""

    least: int
    common: int
    most: int


def ranges(phase: Phase, limits: Limits) -> Mapping[str, Range]:
    """Symbol -> its range.

    decode: 1 to `slots` slots of 1 to 1 + `draft` tokens, most often all slots of one. prefill: chunks of prompts, most
    often a whole one of one slot. Either may be asked for the logits of every token.
    """
    slots = limits.slots
    if phase == "decode":
        tokens = Range(1, 1, 1 + limits.draft)
        return {"B": Range(1, slots, slots), "S": tokens, "R": Range(1, slots, slots * tokens.most)}
    tokens = Range(1, limits.chunk, limits.chunk)
    return {"B": Range(1, 1, slots), "S": tokens, "R": Range(1, 1, slots * limits.chunk)}


def length_range(limits: Limits) -> Range:
    """Of the number of the cache's rows that are read, common: half of them."""
    return Range(1, max(1, limits.capacity // 2), limits.capacity)


def profile_shapes(port: Port, sizes: Mapping[str, Range]) -> list[list[int]] | None:
    """An input's least, commonest and largest shape; None for a fixed one."""
    if all(isinstance(size, int) for size in port.shape):
        return None
    if missing := [size for size in port.shape if isinstance(size, str) and size not in sizes]:
        raise InternalError(f"no range is known for {missing[0]} of input {port.name}")
    return [
        [size if isinstance(size, int) else getattr(sizes[size], field) for size in port.shape]
        for field in Range._fields
    ]


def add_profile(
    builder: IBuilder, config: IBuilderConfig, inputs: Sequence[Port], phase: Phase, limits: Limits
) -> None:
    """Give a builder's config the profile of a phase."""
    sizes = ranges(phase, limits)
    profile = builder.create_optimization_profile()
    for port in inputs:
        shapes = profile_shapes(port, sizes)
        if port.host:
            profile.set_shape_input(port.name, *([value] for value in length_range(limits)))
        elif shapes is not None:
            profile.set_shape(port.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise InternalError(f"TensorRT refuses the {phase} profile {sizes}")
