"""Options that several commands share, and what the whole invocation knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from dsv3export.cli.byte_size import byte_size_or_none
from dsv3export.cli.capabilities import CPU_KERNELS, PROVIDERS

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class Invocation:
    """State of one call of the program, shared by the group, the commands and the error report.

    `arguments` is the command line, without the program's name.
    """

    verbose: bool = False
    arguments: Sequence[str] = ()


def _remember_verbose(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).verbose = True


def verbose_option(function: Function) -> Function:
    """`-v`, accepted before and after the command's name."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember_verbose,
        help="Show the traceback of an error.",
    )(function)


def json_option(help_text: str) -> Callable[[Function], Function]:
    """`--json`, passed to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def quiet_option(function: Function) -> Function:
    """`--quiet`, passed to the command as `quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")(function)


def provider_option(function: Function) -> Function:
    """`--provider` of the commands that load an engine."""
    return click.option(
        "--provider",
        type=click.Choice(("auto", *PROVIDERS)),
        default="auto",
        show_default=True,
        help="Where ONNX Runtime computes. auto: what the engine was built for, or the CPU where it can and must.",
    )(function)


def cpu_kernels_option(function: Function) -> Function:
    """`--cpu-kernels` of the commands that load an engine."""
    return click.option(
        "--cpu-kernels",
        type=click.Choice(("auto", *CPU_KERNELS)),
        default="auto",
        show_default=True,
        help="Which kernels compute on the CPU. auto: the native ones where they were compiled and ENGINE has a graph "
        "for them.",
    )(function)


def invariant_option(function: Function) -> Function:
    """`--invariant` of the commands that generate or measure."""
    return click.option(
        "--invariant",
        is_flag=True,
        help="The same bits however a prompt is cut and whatever runs beside it. Takes native kernels; long prompts "
        "take longer.",
    )(function)


def speculate_option(function: Function) -> Function:
    """`--speculate` of the commands that generate."""
    return click.option(
        "--speculate",
        type=int,
        default=0,
        metavar="N",
        help="Let the MTP layer draft N tokens a step, which the model then verifies together [default: 0].",
    )(function)


def prefix_cache_option(function: Function) -> Function:
    """`--prefix-cache` of the commands that keep latents between requests; None where it is not given."""
    return click.option(
        "--prefix-cache",
        type=byte_size_or_none,
        metavar="SIZE",
        help="Memory for latents of earlier texts; 0 keeps none [default: 256MiB on the CPU, none on a device].",
    )(function)


class PathName(click.Path):
    """A path that may not be empty: an unset shell variable should not mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)
