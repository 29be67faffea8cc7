"""Entry point of the program `dsv3export`: the table of commands and the frame that every call runs in."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import click

from dsv3export import __version__
from dsv3export.cli.failures import PROGRAM, Terminated, exit_code_of
from dsv3export.cli.lazy_group import CommandEntry, LazyGroup
from dsv3export.cli.options import Invocation, verbose_option

COMMANDS = (
    CommandEntry("build", "dsv3export.cli.build", "Turn a checkpoint into an engine."),
    CommandEntry("run", "dsv3export.cli.run", "Generate text with an engine."),
    CommandEntry("serve", "dsv3export.cli.serve", "Serve an engine over HTTP, as OpenAI's API."),
    CommandEntry("bench", "dsv3export.cli.bench", "Measure how fast an engine is, alone or beside another."),
    CommandEntry("eval", "dsv3export.cli.eval", "Say how well an engine predicts a text."),
    CommandEntry("diff", "dsv3export.cli.diff", "Compare two models layer by layer, and name the first fault."),
    CommandEntry("sensitivity", "dsv3export.cli.sensitivity", "Find what needs its bits, and a recipe that follows."),
    CommandEntry("report", "dsv3export.cli.report", "Show what diff wrote as JSON: a page, a picture or a table."),
    CommandEntry("golden", "dsv3export.cli.golden", "Record what a model computes, and check engines against it."),
    CommandEntry("inspect", "dsv3export.cli.inspect", "Say what a checkpoint, an engine or a config holds."),
    CommandEntry("plan", "dsv3export.cli.plan", "Say what a model takes on a device, and how fast it could be."),
    CommandEntry("graph", "dsv3export.cli.graph", "Print the traced graph of a model, or write it as ONNX."),
    CommandEntry("kernels", "dsv3export.cli.kernels", "Compile and test the kernels of the TensorRT plugins."),
    CommandEntry("doctor", "dsv3export.cli.doctor", "Say what works on this machine, and why not."),
    CommandEntry("completion", "dsv3export.cli.completion", "Print the completion script of a shell."),
)

COMPLETION_VARIABLE = "_DSV3EXPORT_COMPLETE"

HELP = """Build, run and inspect engines of DeepSeek-V3-architecture models.

Exit codes: 0 done, 2 bad input (one line on stderr says what to mend), 1 a comparison found a fault, or a bug in
dsv3export (which says so).
"""

EXAMPLES = (
    "dsv3export build examples/tiny-dsv3 -o tiny.engine",
    'dsv3export run tiny.engine --prompt "And it came to pass"',
    "dsv3export inspect tiny.engine",
    "dsv3export doctor",
)


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    name=PROGRAM,
    help=HELP,
    examples=EXAMPLES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@verbose_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Runs the process's own command line and ends the process."""
    sys.exit(call(sys.argv[1:]))


def call(argv: Sequence[str]) -> int:
    """Runs one command line, without the program's name, and returns the exit code (see `failures`); never raises."""
    invocation = Invocation(arguments=tuple(argv))
    _speak_utf8()
    with _sigterm_unwinds():
        return exit_code_of(lambda: _invoke(list(argv), invocation), invocation)


def _invoke(arguments: list[str], invocation: Invocation) -> None:
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        raise click.exceptions.Exit(shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, instruction))
    with cli.make_context(PROGRAM, arguments, obj=invocation) as context:
        cli.invoke(context)
    # Here and not at exit, so that a reader who went away is met by `exit_code_of`.
    sys.stdout.flush()


def _speak_utf8() -> None:
    """Makes both output streams UTF-8 whatever the locale; what UTF-8 cannot say (broken file names) is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`, so that a build that is stopped removes its partial files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
