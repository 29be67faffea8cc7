"""`dsv3export completion`: the script that makes a shell complete commands, options and paths."""

from __future__ import annotations

import click

from dsv3export.cli.command import Command
from dsv3export.cli.options import verbose_option
from dsv3export.errors import InternalError

SHELLS = ("bash", "zsh", "fish")


EXAMPLES = (
    "dsv3export completion bash >> ~/.bashrc",
    "dsv3export completion zsh >> ~/.zshrc",
    "dsv3export completion fish > ~/.config/fish/completions/dsv3export.fish",
)


@click.command("completion", cls=Command, examples=EXAMPLES)
@click.argument("shell", type=click.Choice(SHELLS))
@verbose_option
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL on stdout."""
    from click.shell_completion import get_completion_class

    from dsv3export.cli.failures import PROGRAM
    from dsv3export.cli.main import COMPLETION_VARIABLE

    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise InternalError(f"this version of click has no completion for {shell}")
    template = completion_class(ctx.find_root().command, {}, PROGRAM, COMPLETION_VARIABLE)
    # Not `template.source()`: for bash it starts a bash to check its version, on machines that may have none.
    click.echo(template.source_template % template.source_vars())
