"""Options that the `golden` commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsv3export.cli.capabilities import PRECISIONS
from dsv3export.cli.options import PathName, provider_option

if TYPE_CHECKING:
    from dsv3export.recipe import Recipe

Function = TypeVar("Function", bound=Callable[..., Any])


def model_options(function: Function) -> Function:
    """How the model is run: ``precision``, ``calibration``, ``threads``, ``provider``, ``batch`` and ``chunk``."""
    for option in reversed(
        (
            click.option(
                "--precision", type=click.Choice(PRECISIONS), help="What a checkpoint is computed in.  [default: fp32]"
            ),
            click.option(
                "--calibration", type=PathName(path_type=Path), metavar="FILE", help="The text of calibrated weights."
            ),
            click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of an engine."),
            provider_option,
            click.option(
                "--batch", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
                help="Prompts that are computed at once.",
            ),
            click.option(
                "--chunk", type=click.IntRange(min=1), default=256, show_default=True, metavar="N",
                help="Tokens of a prompt that are computed at once.",
            ),
        )
    ):  # fmt: skip
        function = option(function)
    return function


def checkpoint_recipe(precision: str | None, calibrated: bool, default: object = None) -> Recipe:
    """What a checkpoint is computed in: as asked for, or by a golden's recipe, or float32. Raises UserError."""
    from dsv3export.recipe import Recipe

    if precision is None and default is not None:
        return Recipe.from_json(default, "the golden's recipe", calibrated)
    return Recipe.for_precision(precision or "fp32", calibrated)
