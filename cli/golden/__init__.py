"""`dsv3export golden`: records what a model computes, and holds other models against it."""

from __future__ import annotations

import click

from dsv3export.cli.lazy_group import CommandEntry, LazyGroup
from dsv3export.cli.options import verbose_option

COMMANDS = (
    CommandEntry("record", "dsv3export.cli.golden.record", "Record what a model computes for some prompts."),
    CommandEntry("check", "dsv3export.cli.golden.check", "Hold a model against a golden: the gate for CI."),
    CommandEntry("calibrate", "dsv3export.cli.golden.calibrate", "Measure what a right model may differ by."),
    CommandEntry("show", "dsv3export.cli.golden.show", "Print what a golden holds, but for the numbers."),
)
EXAMPLES = (
    "dsv3export golden record checkpoint --prompts prompts.txt -o model.golden",
    "dsv3export golden check int4.engine model.golden --junit golden.xml",
)


@click.group(
    cls=LazyGroup, table=COMMANDS, name="golden", examples=EXAMPLES, invoke_without_command=True,
)  # fmt: skip
@verbose_option
@click.pass_context
def command(ctx: click.Context) -> None:
    """Record what a right model computes, and check engines against it.

    A golden is one file: prompts, their tokens, log-probabilities and greedy continuations, what goes on in each layer,
    and tolerances. Whoever has it needs neither the model that it was recorded from nor much time.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
