"""Options that the `golden` commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsv3export.cli.capabilities import PRECISIONS
from dsv3export.cli.launch import Timeouts
from dsv3export.cli.options import PathName, cpu_kernels_option, provider_option

if TYPE_CHECKING:
    from dsv3export.golden import Batching, Golden, GoldenModel
    from dsv3export.graphs.triton_kernels import TritonKernels
    from dsv3export.recipe import Recipe
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.providers import Choice

Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelOptions:
    """How a model is run.

    Attributes:
        precision: What a checkpoint is computed in.
        calibration: The text of its calibrated weights.
        threads: CPU threads of an engine.
        provider: Where ONNX Runtime computes.
        cpu_kernels: With which kernels it does on the CPU.
        batch, chunk: Prompts, and tokens of a prompt, that are computed at once.
        timeouts: Of an engine for several ranks, see `RankOptions`.
    """

    precision: str | None
    calibration: Path | None
    threads: int | None
    provider: Choice
    cpu_kernels: KernelChoice
    batch: int
    chunk: int
    timeouts: Timeouts = field(default_factory=Timeouts)

    @property
    def batching(self) -> Batching:
        from dsv3export.golden import Batching

        return Batching(self.batch, self.chunk)

    def open(
        self, model: str, golden: Golden | None, layers: bool, kernels: TritonKernels | None = None
    ) -> GoldenModel:
        """The engine, or the checkpoint in the arithmetic that was asked for, else in the golden's.

        Args:
            layers: Whether it will be looked into.
            kernels: What computes a checkpoint, in place of the ops' definitions.

        Raises UserError.
        """
        from dsv3export.cli.golden.models import open_model

        recipe = checkpoint_recipe(
            self.precision, self.calibration is not None, None if golden is None else golden.document.identity.recipe
        )
        return open_model(
            model, recipe=recipe, calibration=self.calibration, threads=self.threads, provider=self.provider,
            cpu_kernels=self.cpu_kernels, layers=layers, kernels=kernels, timeouts=self.timeouts,
        )  # fmt: skip


_OPTIONS = (
    click.option(
        "--precision", type=click.Choice(PRECISIONS), help="What a checkpoint is computed in.  [default: fp32]"
    ),
    click.option(
        "--calibration", type=PathName(path_type=Path), metavar="FILE", help="The text of calibrated weights."
    ),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of an engine."),
    provider_option,
    cpu_kernels_option,
    click.option(
        "--batch", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
        help="Prompts that are computed at once.",
    ),
    click.option(
        "--chunk", type=click.IntRange(min=1), default=256, show_default=True, metavar="N",
        help="Tokens of a prompt that are computed at once.",
    ),
)  # fmt: skip


def model_options(command: Callable[..., Result]) -> Callable[..., Result]:
    """Adds them; the command gets them as one argument, `running`."""

    @wraps(command)
    def gathered(
        *arguments: Any,
        precision: str | None,
        calibration: Path | None,
        threads: int | None,
        provider: Choice,
        cpu_kernels: KernelChoice,
        batch: int,
        chunk: int,
        **others: Any,
    ) -> Result:
        running = ModelOptions(precision, calibration, threads, provider, cpu_kernels, batch, chunk)
        return command(*arguments, running=running, **others)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def checkpoint_recipe(precision: str | None, calibrated: bool, default: object = None) -> Recipe:
    """What a checkpoint is computed in: as asked for, or by a golden's recipe, or float32. Raises UserError."""
    from dsv3export.recipe import Recipe

    if precision is None and default is not None:
        return Recipe.from_json(default, "the golden's recipe", calibrated)
    return Recipe.for_precision(precision or "fp32", calibrated)
