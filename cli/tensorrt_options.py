"""The options of `build` that only TensorRT's backends take."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

Result = TypeVar("Result")

_OPTIONS = (
    click.option("--max-slots", type=int, metavar="N", help="TensorRT: sequences of a step [default: 8]."),
    click.option(
        "--max-length",
        type=int,
        metavar="N",
        help="TensorRT: tokens of a sequence, for which each slot's cache has room [default: 4096, or the model's].",
    ),
    click.option("--prefill-chunk", type=int, metavar="N", help="TensorRT: prompt tokens of a step [default: 256]."),
    click.option(
        "--max-draft", type=int, metavar="N", help="TensorRT: tokens that a decode step may verify [default: 1]."
    ),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="SM",
        help="TensorRT-RTX: build for this compute capability, such as sm89; may be given several times"
        " [default: sm80 and later].",
    ),
    click.option(
        "--bake-weights",
        is_flag=True,
        help="TensorRT: engines that hold their weights, two of each layer; fp32, bf16 and f16 only. Twice the memory.",
    ),
)


def tensorrt_options(command: Callable[..., Result]) -> Callable[..., Result]:
    """Adds them; the command gets them as one argument, `tensorrt`."""

    @wraps(command)
    def gathered(
        *arguments: Any,
        max_slots: int | None,
        max_length: int | None,
        prefill_chunk: int | None,
        max_draft: int | None,
        devices: tuple[str, ...],
        bake_weights: bool,
        **others: Any,
    ) -> Result:
        from dsv3export.graphs.backend import TensorRTOptions

        options = TensorRTOptions(max_slots, max_length, prefill_chunk, max_draft, devices, bake_weights)
        return command(*arguments, tensorrt=options, **others)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered
