"""A Click group whose commands are imported only when they are called or asked for help."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from dsv3export.cli.command import Command


@dataclass(frozen=True)
class CommandEntry:
    """One row of the command table.

    Attributes:
        name: What the user types.
        module: Module that holds the command as an attribute called `command`.
        summary: The line shown by `dsv3export --help`, kept here so that help imports no command.
    """

    name: str
    module: str
    summary: str


class LazyGroup(Command, click.Group):
    """Serves `table` as subcommands; `--help` reads the table only."""

    def __init__(self, table: Sequence[CommandEntry], **attributes: Any) -> None:
        super().__init__(**attributes)
        self.table = {entry.name: entry for entry in table}
        if len(self.table) != len(table):
            raise ValueError("two commands have one name")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), "command", None)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module} has no click command called 'command'")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.summary) for entry in self.table.values()])
