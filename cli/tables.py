"""How results are printed for people: rich tables and sizes. rich is imported when the first table is drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Columns of a table that goes to a file or a pipe, where no terminal says how many there are.
PIPE_WIDTH = 160

_BINARY_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def print_json(value: Any) -> None:
    """`value` as exactly one line of JSON (no NaN, no infinities) on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """Prints a table on stdout; cells are shown as they are (no markup), the columns in `right` right-aligned.

    A cell may be a `rich.text.Text`, for its colour.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    _print_below(title, table)


def print_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """Prints a title and label-value lines on stdout."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(f"  {label}", Text(str(value)))
    _print_below(title, grid)
    console().print()


def _print_below(title: str, table: Table) -> None:
    """The title on a line of its own, however narrow the table is."""
    from rich.text import Text

    console().print(Text(title, style="bold"), soft_wrap=True)
    console().print(table)


def console() -> Console:
    """A console on today's stdout: its own width on a terminal, a wide one elsewhere."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def bytes_text(count: int | None) -> str:
    """1536 -> '1.5 KiB'; None -> 'unknown'."""
    if count is None:
        return "unknown"
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(_BINARY_UNITS))
    return f"{count / 1024**power:.1f} {_BINARY_UNITS[power - 1]}"


def count_text(count: int) -> str:
    """37_000_000_000 -> '37.00 B'; small counts as they are."""
    for unit, value in (("B", 10**9), ("M", 10**6)):
        if count >= value:
            return f"{count / value:.2f} {unit}"
    return f"{count:,}"


def counted(count: int, noun: str) -> str:
    """1 -> '1 tensor', 1234 -> '1,234 tensors'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
